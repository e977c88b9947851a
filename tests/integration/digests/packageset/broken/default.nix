# Does not parse: nobody's request can be served from this set.
{ system }:
{
  hello = derivation { name = "hello" system = system; };
}
