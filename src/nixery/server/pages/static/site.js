// Optional features of the pages: completing names, copying lines, following a build. The pages are readable without it.
"use strict";

const $ = (id) => document.getElementById(id);
const say = (text) => { $("status").textContent = text; };

// An element that allows line breaks between the packages of a name.
function breakable(word) {
  const made = document.createElement("span");
  word.split("/").forEach((part, index) => made.append(...(index ? ["/", document.createElement("wbr"), part] : [part])));
  return made;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text; // never as HTML: names and logs are untrusted
  if (className) made.className = className;
  return made;
}

function size(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return `${unit === "B" || count >= 100 ? Math.round(count) : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

function sizeOf(done, total) {
  const part = size(done), whole = size(total), [number, unit] = part.split(" ");
  return `${whole.endsWith(` ${unit}`) ? number : part} of ${whole}`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function copyButtons() {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.dataset.copies ? $(button.dataset.copies) : button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        // Browsers offer a clipboard only to encrypted or local pages; the old API works for the others.
        const selection = getSelection();
        selection.selectAllChildren(code);
        if (!document.execCommand("copy")) return say("This browser does not allow copying; the line is selected.");
        selection.removeAllRanges();
      }
      button.textContent = "Copied";
      button.classList.add("copied");
      say(button.dataset.copies ? "Copied" : `Copied: ${code.textContent}`);
      setTimeout(() => { button.textContent = "Copy"; button.classList.remove("copied"); }, 2000);
    });
  }
}

const grouped = (number) => number.toLocaleString("en");
const packagePage = (name, tag) => `/packages/${encodeURIComponent(name)}${tag === "latest" ? "" : `?tag=${encodeURIComponent(tag)}`}`;

// Replaces the tag of the lines by the commit that it stands for, and back. Without a script, the link leads to the page
// of the image at that commit.
function pinning(link) {
  const { tag, exact } = link.dataset, help = $("pin-help");
  const explanation = [...help.childNodes];
  let pinned = false;
  link.setAttribute("role", "button");
  link.setAttribute("aria-pressed", "false");
  link.addEventListener("keydown", (event) => { if (event.key === " ") { event.preventDefault(); link.click(); } });
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // in a new tab, as any link
    event.preventDefault();
    const [from, to] = pinned ? [exact, tag] : [tag, exact];
    for (const code of document.querySelectorAll("code[data-line]")) {
      const words = code.textContent.split(" ").map((word) => word.endsWith(`:${from}`) ? word.slice(0, -from.length) + to : word);
      code.replaceChildren(...words.map(breakable).flatMap((word, index) => (index ? [" ", word] : [word])));
    }
    pinned = !pinned;
    link.setAttribute("aria-pressed", String(pinned));
    link.textContent = pinned ? `Use the tag ${tag} again` : "Pin this state";
    help.replaceChildren(...(pinned ? ["The lines pull this state of the packages, now and later."] : explanation));
    say(pinned ? "The lines have the commit" : `The lines have the tag ${tag}`);
  });
}

async function build(name, tag, button) {
  const problem = $("problem");
  problem.hidden = true;
  button.disabled = true;
  try {
    const response = await fetch("/api/v1/builds", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name, tag }),
    });
    const answer = await response.json();
    if (response.ok && answer.builds[0].page !== location.pathname) {
      location.assign(answer.builds[0].page);
      return;
    }
    // The answer is the build of this page if it failed a moment ago: a retry would repeat its error.
    problem.textContent = response.ok ? "The server still repeats this failure. Try again in a minute." : answer.errors[0].message;
  } catch {
    problem.textContent = "The server cannot be reached.";
  }
  problem.hidden = false;
  button.disabled = false;
}

// The button is on the page of who may cancel the build. The page follows the build to its end.
function cancelling(button, id) {
  const problem = $("cancel-problem");
  button.hidden = false;
  button.addEventListener("click", async () => {
    if (!confirm("Cancel this build? Clients that wait for it get an error.")) return;
    problem.hidden = true;
    button.disabled = true;
    try {
      const response = await fetch(`/api/v1/builds/${id}/cancel`, { method: "POST" });
      if (response.ok) return say("The build is being cancelled");
      problem.textContent = (await response.json()).errors[0].message;
    } catch {
      problem.textContent = "The server cannot be reached.";
    }
    problem.hidden = false;
    button.disabled = false;
  });
}

function compose(section) {
  document.documentElement.classList.add("scripted");
  const input = $("packages"), chips = $("chips"), list = $("suggestions"), platform = $("platform"), tag = $("tag");
  const shell = $("shell"), button = $("build"), chosen = [];
  const lines = [...section.querySelectorAll("code[data-line]")].map((code) => [code, code.textContent]);
  let options = [], active = -1, asked = 0, committing = false, timer, checks = 0, digestTimer, digests = 0;
  const answers = new Map(), notes = element("ul", undefined, "notes");

  // The address of the page keeps the composition, for the browser's "Back" and for links from other pages.
  const given = input.value.trim().toLowerCase().split(/[\s,]+/).filter(Boolean);
  input.value = "";
  function keep() {
    const fields = { packages: [...chosen, ...typed()].join(" "), platform: platform.value, tag: tag.value === "latest" ? "" : tag.value, shell: shell.checked ? "1" : "" };
    const query = new URLSearchParams(Object.entries(fields).filter(([, value]) => value));
    history.replaceState(null, "", `${fields.packages ? `/?${query}` : "/"}${location.hash}`);
  }

  input.removeAttribute("name");
  const hidden = element("input");
  hidden.type = "hidden";
  hidden.name = "packages";
  input.form.append(hidden);
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-expanded": "false", "aria-controls": "suggestions", "aria-autocomplete": "list",
  })) input.setAttribute(name, value);
  const help = matchMedia("(pointer: coarse)").matches
    ? "Type a name, a program or a description, and tap a suggestion."
    : "Type a name, a program or a description. Enter adds the name that you typed; choose a suggestion with the arrow keys to add that one.";
  $("packages-help").textContent = help;
  $("packages-help").after(notes);

  const typed = () => input.value.trim().toLowerCase().split(/[\s,]+/).filter(Boolean);
  // Words of a description, for which packages are offered, are no part of the name.
  const named = () => typed().length > 1 && options.length && !options.some((found) => typed().includes(found.name)) ? [] : typed();
  const name = () => [platform.value, shell.checked ? "shell" : "", ...chosen, ...named()].filter(Boolean).join("/");

  function show() {
    const image = name() || "shell/git";
    const reference = `${section.dataset.host}/${image}:${tag.value || "latest"}`;
    for (const [code, line] of lines) {
      const words = line.replace(section.dataset.reference, () => reference).split(" ").map(breakable);
      code.replaceChildren(...words.flatMap((word, index) => (index ? [" ", word] : [word])));
    }
    hidden.value = [...chosen, ...named()].join(" ");
    button.disabled = !name();
    chips.replaceChildren(...chosen.map((package_) => {
      const problem = problemOf(package_);
      const chip = element("li", undefined, problem ? "unknown" : undefined), link = element("a", package_);
      if (problem) {
        chip.title = problem;
        chip.append(element("span", "!", "mark"), element("span", `${problem}: `, "unseen"));
      }
      link.href = packagePage(package_, tag.value || "latest");
      chip.append(link);
      const remove = element("button", "×");
      remove.type = "button";
      remove.setAttribute("aria-label", `Remove ${package_}`);
      remove.addEventListener("click", () => { drop(package_); input.focus(); });
      chip.append(remove);
      return chip;
    }));
    showDigest();
    keep();
    input.placeholder = chosen.length ? "" : "git, jq, python3 …";
    notes.replaceChildren(...chosen.filter(problemOf).map(note));
  }

  // The line by digest, if the image was built already. Not for each letter: the server may have to read its storage.
  function showDigest() {
    const row = $("by-digest"), image = name(), at = tag.value || "latest", question = ++digests;
    row.hidden = true;
    clearTimeout(digestTimer);
    if (typed().length || !/^[a-z0-9._/-]+$/.test(image) || chosen.some((package_) => answers.get(package_)?.exists === false)) return;
    digestTimer = setTimeout(async () => {
      try {
        const response = await fetch(`/api/v1/digests/${image}:${encodeURIComponent(at)}`);
        if (!response.ok) return;
        const { digest } = await response.json();
        if (!digest || question !== digests) return; // not built yet, or of an earlier name
        const words = ["docker", "pull", `${section.dataset.host}/${image}@${digest}`].map(breakable);
        row.querySelector("code").replaceChildren(...words.flatMap((word, index) => (index ? [" ", word] : [word])));
        row.hidden = false;
      } catch {
        // The page of the image has the digest.
      }
    }, 300);
  }

  // Why an image with a chosen package cannot be built; empty as far as the server knows.
  function problemOf(package_) {
    const answer = answers.get(package_);
    if (answer?.exists === false) return "no such package";
    return answer?.reason ? `not available: ${answer.reason}` : "";
  }

  // The problem of a chosen package, with similar names to use in its place.
  function note(package_) {
    const made = element("li", undefined, "why"), near = answers.get(package_).near_names;
    made.append(element("b", package_), `: ${problemOf(package_)}${near.length ? ". Did you mean " : ""}`);
    near.forEach((name_, index) => {
      const button = element("button", name_, "near");
      button.type = "button";
      button.setAttribute("aria-label", `Use ${name_} in place of ${package_}`);
      button.addEventListener("click", () => {
        chosen.splice(chosen.indexOf(package_), 1);
        add(name_);
        input.focus();
      });
      made.append(index ? " " : "", button);
    });
    if (near.length) made.append("?");
    return made;
  }

  async function check() {
    const names = chosen.filter((package_) => !answers.has(package_)), turn = ++checks;
    if (!names.length) return;
    try {
      const response = await fetch(`/api/v1/names?${new URLSearchParams({ q: names.join(" "), tag: tag.value || "latest" })}`);
      if (!response.ok) return;
      const answer = await response.json();
      if (turn !== checks) return; // the next check has these names, too
      for (const checked of answer.names) if (checked.exists !== null) answers.set(checked.name, checked);
    } catch {
      return; // a pull tells
    }
    show();
    const wrong = names.filter(problemOf);
    if (wrong.length) say(wrong.map((package_) => `${package_}: ${problemOf(package_)}`).join(". "));
  }

  // Words that have their meaning at the beginning of a name.
  const isField = (word) => word === "shell" || [...platform.options].some(({ value }) => value && value === word);

  function add(package_) {
    if (package_ === "shell") shell.checked = true;
    else if (isField(package_)) platform.value = package_;
    else if (package_ && !chosen.includes(package_)) chosen.push(package_);
    input.value = "";
    close();
    show();
    say(`${package_} added`);
    check();
  }

  function drop(package_) {
    chosen.splice(chosen.indexOf(package_), 1);
    show();
    say(`${package_} removed`);
  }

  function close() {
    asked += 1;
    clearTimeout(timer);
    list.hidden = true;
    options = [];
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function select(index) {
    active = index;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === active)));
    const item = list.children[active];
    if (item) {
      input.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  async function search(text, limit) {
    const query = new URLSearchParams({ q: text, limit: String(limit), tag: tag.value || "latest" });
    const response = await fetch(`/api/v1/packages?${query}`);
    if (!response.ok) throw new Error(response.statusText);
    const answer = await response.json();
    const { attributes, evaluated, complete } = answer.index;
    answer.progress = complete ? "" : `${grouped(evaluated)} of ${grouped(attributes)} packages are described.`;
    $("packages-help").textContent = [help, answer.progress].join(" ").trim();
    return answer;
  }

  // What a suggestion tells besides the name: why it is not available, what it is another name of, the description.
  function about(found) {
    const made = element("span", undefined, "about");
    if (found.reason) made.append(element("span", found.reason, "why"), " ");
    if (found.alias_of) made.append(`another name of ${found.alias_of}${found.description ? ": " : ""}`);
    made.append(found.description);
    made.title = made.textContent;
    return made;
  }

  function suggestion(found, index) {
    const item = element("li", undefined, found.available === false ? "unavailable" : undefined);
    item.id = `suggestion-${index}`;
    item.setAttribute("role", "option");
    const title = element("b", found.name);
    title.append(element("span", found.version, "version"));
    if (found.attribute.toLowerCase() !== found.name) title.append(element("span", found.attribute, "attribute"));
    // For the mouse and for fingers: an option has no link in it. The chip of a chosen package links to the same page.
    const more = element("span", "details", "more");
    more.setAttribute("aria-hidden", "true");
    more.addEventListener("mousedown", (event) => { event.preventDefault(); event.stopPropagation(); }); // keeps the list open
    const open = (event) => {
      const page = packagePage(found.name, tag.value || "latest");
      if (event.button === 1 || event.ctrlKey || event.metaKey || event.shiftKey) window.open(page);
      else if (event.button === 0) location.assign(page);
    };
    more.addEventListener("click", open);
    more.addEventListener("auxclick", open);
    item.append(title, about(found), more);
    item.addEventListener("mousedown", (event) => { event.preventDefault(); add(found.name); });
    return item;
  }

  async function suggest() {
    const text = input.value.trim().toLowerCase();
    if (!text) return close();
    const question = ++asked;
    let answer;
    try {
      answer = await search(text, 12);
    } catch {
      return;
    }
    if (question !== asked) return; // the input has changed since
    const selected = options[active]?.name; // since the last key, in the results of an earlier one
    options = answer.packages.filter((found) => !chosen.includes(found.name));
    list.replaceChildren(...options.map(suggestion));
    if (!options.length) list.append(element("li", "No package has a similar name.", "none"));
    if (answer.progress) list.append(element("li", answer.progress, "progress"));
    for (const note of list.querySelectorAll(".none, .progress")) note.setAttribute("role", "presentation");
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    // Enter adds what was typed, so nothing else is selected before the user selects it.
    const still = selected === undefined ? -1 : options.findIndex((found) => found.name === selected);
    select(still >= 0 ? still : options[0]?.name === text ? 0 : -1);
    say(options.length ? `${options.length} packages found` : "No package found");
    if (typed().length > 1) show();
  }

  // A space ends the name of a package, or is between words of a description: a name is chosen if there is such a package.
  async function commitWords() {
    if (committing) return;
    committing = true;
    try {
      for (let match; (match = /^\s*([^\s,]+)\s+/.exec(input.value)); ) {
        const word = match[1].toLowerCase();
        const found = isField(word) || (await search(word, 1)).packages[0]?.name === word;
        if (!found || !input.value.startsWith(match[0])) break;
        const rest = input.value.slice(match[0].length);
        add(word);
        input.value = rest;
        show();
        if (rest) suggest();
      }
    } catch {
      // The text stays as it is; its words are part of the name.
    } finally {
      committing = false;
    }
  }

  input.addEventListener("input", () => {
    show();
    select(-1); // of the earlier text
    clearTimeout(timer);
    timer = setTimeout(suggest, 60);
    if (/\S\s/.test(input.value)) commitWords();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && options.length) select((active + 1) % options.length);
    else if (event.key === "ArrowUp" && options.length) select((Math.max(active, 0) + options.length - 1) % options.length);
    else if (event.key === "Escape") close();
    else if (event.key === "Enter" && active >= 0) add(options[active].name);
    else if (event.key === "Enter" && typed().length === 1) add(typed()[0]);
    else if (event.key === "Enter" && typed().length) {
      // Words of a description: the first package is offered, and the next Enter adds it.
      if (options.length) {
        select(0);
        say(`Press Enter again to add ${options[0].name}`);
      }
    }
    else if (event.key === "," && input.value.trim()) add(typed()[0]);
    else if (event.key === "Backspace" && !input.value && chosen.length) return drop(chosen.at(-1));
    else return;
    event.preventDefault();
  });
  input.addEventListener("blur", close);
  for (const field of [platform, tag, shell]) field.addEventListener("input", show);
  tag.addEventListener("change", () => { answers.clear(); show(); check(); });
  button.addEventListener("click", () => build(name(), tag.value || "latest", button));
  for (const package_ of given) if (!chosen.includes(package_)) chosen.push(package_);
  show();
  check();
  search("", 0).catch(() => {}); // so that names are available when the user starts to type
}

const withoutHashes = (text) => text.replace(/(?:\/nix\/store\/)?\b[0-9a-z]{32}-/g, "");

function about(seconds) {
  if (seconds < 10) return "a few seconds";
  if (seconds < 60) return `about ${Math.round(seconds / 10) * 10} s`;
  return seconds < 3600 ? `about ${Math.round(seconds / 60)} min` : `about ${(seconds / 3600).toFixed(1)} h`;
}

// What an empty log means; pages.py has the same texts.
function nothingWritten(build) {
  const stage = build.stages.at(-1)?.name ?? "queued";
  if (build.ended !== null || ["group", "pack", "store"].includes(stage)) {
    if (build.state === "failed") return "No builder wrote anything.";
    return build.built ? "The builders wrote nothing." : "No builder had to run.";
  }
  if (stage === "queued") return "The build waits for its turn.";
  if (stage === "evaluate") return "Nix is evaluating the packages. Builders start after that.";
  if (build.builders.length) return `${build.builders.at(-1).name} has written nothing so far.`;
  return build.to_fetch_paths ? "Nix is fetching packages. Only builders write a log." : "No builder is running yet.";
}

// Failures that the server repeats for a while; pages.py has the same ones.
const REPEATED = new Set(["unknown-package", "unavailable", "evaluation", "builder", "timeout", "too-large"]);

function failureTitle({ failed, failure }) {
  if (failure === "timeout") return `${failed ?? "The build"} took too long`;
  if (failed) return `${failed} did not build`;
  return failure === "cancelled" ? "The build was cancelled" : "The build failed";
}

function follow(page) {
  const log = $("log");
  // This machine's clock need not be the server's.
  const ahead = Date.now() / 1000 - Number(page.dataset.now);
  const now = () => Date.now() / 1000 - ahead;
  const titles = Object.fromEntries([...document.querySelectorAll("[data-stage]")].map((li) => [li.dataset.stage, li]));
  const parts = Object.fromEntries([...document.querySelectorAll("[data-part]")].map((rect) => [rect.dataset.part, rect]));
  let over = false, heard = false, latest = null;
  if (log) log.scrollTop = log.scrollHeight;

  // What changes with the time alone.
  function tick() {
    if (!latest) return;
    const build = latest, took = (stage) => Math.max(0, (stage.ended ?? now()) - stage.started);
    const total = build.stages.reduce((sum, stage) => sum + took(stage), 0) || 1;
    let start = 0;
    build.stages.forEach((stage, index) => {
      const item = titles[stage.name], last = index === build.stages.length - 1, width = Math.round(1000 * took(stage) / total);
      const kind = stage.ended === null ? "current" : build.state === "failed" && last ? "failed" : "past";
      item.hidden = false;
      item.className = kind;
      if (stage.ended === null) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
      item.lastElementChild.textContent = duration(took(stage)) + (build.ended === null ? "" : ` · ${Math.round(width / 10)} %`);
      parts[stage.name].setAttribute("class", kind);
      parts[stage.name].setAttribute("x", String(start));
      parts[stage.name].setAttribute("width", String(width));
      start += width;
    });
    $("building").replaceChildren(...build.builders.flatMap(({ name, started, usual }, index) => [
      index ? ", " : "Building ",
      element("b", name),
      ` for ${duration(now() - started)}${usual === null ? "" : ` (${about(usual)} the last time)`}`,
    ]));
    $("position").textContent = build.position === null ? "" :
      `${build.position}${build.starts === null ? "" : `, starts in ${about(Math.max(0, build.starts - now()))}`}`;
    $("time").textContent = duration((build.ended ?? now()) - build.created);
  }

  function show({ build, lines }) {
    if (log && !heard) log.textContent = ""; // the server sends the whole log again
    heard = true;
    latest = build;
    const badge = element("span", build.state, `badge ${build.state}`);
    if ($("state").textContent !== build.state) say(`The build is ${build.state}`);
    $("state").replaceChildren(badge);
    document.title = `${build.name}: build ${build.state}`;
    $("queue").hidden = build.position === null;
    const named = build.packages - build.implied;
    $("count").textContent = build.packages === null ? "–" : build.implied ?
      `${named} requested, ${build.implied} come with ${named === 1 ? "it" : "them"}` : String(build.packages);
    if (build.size !== null) $("closure").textContent = `${size(build.size)}, ${build.paths} paths`;
    if (build.to_fetch || build.to_fetch_paths) {
      const paths = build.to_fetch_paths ? `${build.fetched_paths} of ${build.to_fetch_paths} paths, ` : "";
      $("fetched").textContent = paths + sizeOf(build.fetched, build.to_fetch);
    }
    if (build.built || build.to_build) $("built").textContent = `${build.built}${build.to_build ? ` of ${build.to_build}` : ""}`;
    if (build.layers !== null) $("layers").textContent = `${build.packed + build.reused} of ${build.layers}`;
    if (build.layers !== null) {
      $("packed").textContent = size(build.packed_bytes);
      $("reused").textContent = size(build.reused_bytes);
    }
    $("estimate").hidden = build.usual === null || build.ended !== null;
    if (build.usual !== null) $("estimate").textContent = `The last build of an image of this name took ${about(build.usual)}.`;
    if (log) {
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.dataset.empty = nothingWritten(build);
      for (const line of lines) log.append(`${line.text}\n`);
      if (atEnd) log.scrollTop = log.scrollHeight;
      $("dropped").hidden = !build.dropped;
      $("dropped").textContent = `${build.dropped} earlier lines are not shown.`;
    }
    if (build.ended !== null) {
      over = true;
      $("failure").hidden = build.error === null;
      if ($("stop")) $("stop").hidden = true;
      $("failure-title").textContent = failureTitle(build);
      $("tail").textContent = build.tail.map((line) => `${line}\n`).join("");
      $("tail").hidden = $("tail-title").hidden = !build.tail.length;
      $("error").textContent = withoutHashes(build.error ?? "");
      if ($("again")) $("again").hidden = build.error === null;
      const left = Number(page.dataset.remembered);
      if ($("remembered") && build.error !== null && left && REPEATED.has(build.failure)) {
        $("remembered").textContent = `For ${about(left)}, the server repeats this failure without building again.`;
        $("remembered").hidden = false;
      }
      $("done").hidden = build.manifest === null;
    }
    tick();
  }

  if (page.dataset.over === "true") return;
  const source = new EventSource(`/api/v1/builds/${page.dataset.build}/events`);
  source.addEventListener("change", (event) => show(JSON.parse(event.data)));
  source.addEventListener("end", (event) => { source.close(); show(JSON.parse(event.data)); });
  source.addEventListener("error", () => {
    // The browser reconnects after a lost connection, but not after the server refused one.
    if (source.readyState !== EventSource.CLOSED || over) return;
    over = true;
    $("building").textContent = "This page cannot follow the build any more. Reload it to see the progress.";
    say($("building").textContent);
  });
  const clock = setInterval(() => {
    if (over) return clearInterval(clock);
    tick();
  }, 500);
}

// A tile of a map leads to a row of a folded table; some browsers do not unfold it themselves.
function unfold() {
  const row = /^#layer-\d+-\d+$/.test(location.hash) && document.querySelector(location.hash);
  if (!row) return;
  row.closest("details").open = true;
  row.scrollIntoView({ block: "center" });
  row.focus({ preventScroll: true });
}

addEventListener("hashchange", unfold);
unfold();
copyButtons();
if ($("pin")?.dataset.exact) pinning($("pin"));
if ($("compose")) compose($("compose"));
if ($("build-page")) follow($("build-page"));
if ($("cancel")) cancelling($("cancel"), $("build-page").dataset.build);
if ($("build")?.matches("button")) {
  const button = $("build");
  button.hidden = false;
  if (button.dataset.name) button.addEventListener("click", () => build(button.dataset.name, button.dataset.tag, button));
}
