-- Loaded by wrk: print what was measured as one line of JSON. Latencies are a histogram, so that runs can be added up.
function done(summary, latency, requests)
   local histogram = {}
   for i = 1, #latency do
      local microseconds, count = latency(i)
      histogram[#histogram + 1] = string.format("[%d,%d]", microseconds, count)
   end
   local e = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"bytes":%d,"microseconds":%d,"socket_errors":%d,"status_errors":%d,"timeouts":%d,"latency":[%s]}\n',
      summary.requests, summary.bytes, summary.duration, e.connect + e.read + e.write, e.status, e.timeout,
      table.concat(histogram, ",")))
end
