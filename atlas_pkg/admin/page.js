/*
  The status page, from top to bottom: numbers, upstreams, events and errors from stats.json, exchanges
  from explain.json, changes by an administrator. It asks every two seconds. Data enters only as text
  (`make`, `textContent`), never as markup.
*/
"use strict";
(() => {
const PERIOD = 2000;  // between two polls
const PATIENCE = 5000;  // for one
const LEVELS = {up: "good", checking: "warn", "half-open": "warn", down: "bad", open: "bad",
  drain: "off", maintenance: "off"};
const GLYPHS = {good: "✓", warn: "!", bad: "✕", off: "–"};
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

let stats = null;  // the last document
let token = "";  // never leaves this variable, but for the requests that need it
let sorting = {key: "", down: false};
let newest = null;  // the time of the newest event that was announced
const rows = new Map();  // key -> table row

/* Making elements. Children are elements or text; text is never read as markup. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}
const make = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const sub = (...children) => make("span", {class: "sub"}, ...children);

/* Puts `fresh` in place of `old` if they differ, so that focus and selection survive a poll. */
function settle(old, fresh) {
  if (old.isEqualNode(fresh)) return old;
  old.replaceWith(fresh);
  return fresh;
}
function settleChildren(element, ...children) {
  const fresh = element.cloneNode(false);
  fresh.append(...children);
  if (!element.isEqualNode(fresh)) element.replaceChildren(...children);
}

/* Numbers for people: few digits, the right unit. */
const group = (value, digits = 0) => value.toLocaleString("en",
  {minimumFractionDigits: digits, maximumFractionDigits: digits});
const count = (value) => value >= 1e6 ? `${(value / 1e6).toFixed(2)} M`
  : group(value, value >= 10 || Number.isInteger(value) ? 0 : 1);
const rate = (value) => `${count(value)} /s`;
const percent = (value) => value > 0 && value < 0.1 ? "<0.1 %"
  : `${value.toFixed(value > 0 && value < 10 ? 1 : 0)} %`;
const milliseconds = (value) => value === null ? "–" : group(value, value < 10 ? 1 : 0);
function bytesRate(value) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (value >= 1000 && unit < 3) { value /= 1000; unit += 1; }
  return `${value.toFixed(unit && value < 10 ? 1 : 0)} ${units[unit]}/s`;
}
function span(seconds) {
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.max(0, seconds).toFixed(0)} s`;
}
function when(instant) {
  const date = new Date(instant * 1000);
  const text = date.toLocaleTimeString("en-GB");
  return make("time", {datetime: date.toISOString(), title: date.toLocaleString()}, text);
}
const endpoint = (address, port) => address.startsWith("unix:") ? address
  : address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/* Curves: the one of the number, and maybe another one in a lane of its own beneath. Each fills its
   height, so their scales differ. A null is a gap. */
function curve(values, floor, height) {
  const top = Math.max(...values.filter((value) => value !== null), 1e-9);
  let path = "", pen = "M";
  values.forEach((value, index) => {
    if (value === null) { pen = "M"; return; }
    const x = 118 - 2 * (values.length - 1 - index);
    path += `${pen}${x} ${(floor - height * value / top).toFixed(2)}`;
    pen = "L";
  });
  return path;
}
function spark(values, second = null) {
  const bottom = second ? 33 : 48, path = curve(values, bottom - 3, bottom - 7), parts = [];
  if (path && !values.includes(null)) {
    const begin = 118 - 2 * (values.length - 1);
    parts.push(draw("path", {class: "area", d: `${path}L118 ${bottom}L${begin} ${bottom}Z`}));
  }
  if (second) {
    parts.push(draw("path", {class: "rule", d: `M0 ${bottom}H118`}),
      draw("path", {class: "second", d: curve(second, 46, 10)}));
  }
  if (path) parts.push(draw("path", {d: path}));
  return draw("svg", {class: "spark", viewBox: "0 0 118 48", preserveAspectRatio: "none",
    "aria-hidden": "true"}, ...parts);
}
/* What the curve beneath is, with a piece of it. */
const second = (text) => make("span", {class: "second", title: "the curve beneath"},
  draw("svg", {class: "key", viewBox: "0 0 14 8", "aria-hidden": "true"},
    draw("path", {d: "M0 4H14"})), text);

/* An upstream's last minute: a bar for each second, red where requests failed, on its state. */
function strip(data) {
  const total = data.requests.length,
    top = Math.max(1, ...data.requests.map((number, index) => number + data.failed[index]));
  const paths = {dback: "", oback: "", ok: "", failed: "", u: "", d: "", o: ""};
  for (let index = 0; index < total; index += 1) {
    const x = 2 * (60 - total + index), mark = data.marks[index];
    const bar = (height) => `M${x} 30v${-height}h1.5v${height}z`;
    const whole = data.requests[index] + data.failed[index];
    if (whole) paths.ok += bar((28 * whole / top).toFixed(2));
    if (data.failed[index]) paths.failed += bar(Math.max(4, 28 * data.failed[index] / top).toFixed(2));
    if (mark in paths) paths[mark] += `M${x} 31h2v3h-2z`;
    if (`${mark}back` in paths) paths[`${mark}back`] += `M${x} 0h2v31h-2z`;
  }
  const sum = (values) => values.reduce((one, other) => one + other, 0);
  const seconds = [...data.marks].filter((mark) => mark === "d").length;
  const label = `${plural(sum(data.requests), "request")} answered, ${count(sum(data.failed))} failed, `
    + `down for ${seconds} s`;
  return draw("svg", {class: "strip", viewBox: "0 0 120 34", preserveAspectRatio: "none",
    role: "img", "aria-label": label}, draw("title", {}, label),
    ...Object.entries(paths).filter(([, path]) => path)
      .map(([name, path]) => draw("path", {class: name, d: path})));
}

/* The cells of an upstream's row. */
const failuresOf = (upstream) => Object.values(upstream.failures).reduce((a, b) => a + b, 0);
function nameCell(upstream) {
  return make("th", {scope: "row", role: "rowheader", class: "name"}, make("b", {}, upstream.name),
    upstream.group === "default" ? "" : sub(`group ${upstream.group}`),
    sub(endpoint(upstream.address, upstream.port), upstream.backup ? ", backup" : ""));
}
function stateCell(upstream) {
  const level = LEVELS[upstream.kind] ?? "off";
  const since = upstream.since === null ? "" : ` for ${span(stats.time - upstream.since)}`;
  return cell("State", "why", make("span", {class: `state ${level}`},
    make("span", {"aria-hidden": "true"}, GLYPHS[level]), upstream.state),
    since ? make("small", {}, since) : "", upstream.why ? sub(upstream.why) : "");
}
function mix(classes) {
  const total = Object.values(classes).reduce((a, b) => a + b, 0);
  const picture = draw("svg", {class: "mix", viewBox: "0 0 100 5", preserveAspectRatio: "none",
    "aria-hidden": "true"});
  let x = 0;
  for (const [name, number] of Object.entries(classes)) {
    if (!number) continue;
    // What is there at all is to be seen, however small its share.
    const width = Math.max(3, 100 * number / total);
    picture.append(draw("rect", {class: `c${name[0]}`, x: Math.min(x, 97).toFixed(2), y: 0,
      width: width.toFixed(2), height: 5}));
    x += width;
  }
  return picture;
}
function answersCell(upstream) {
  const there = Object.entries(upstream.classes).filter(([, number]) => number);
  if (!there.length) return cell("Answers", "classes", "none yet");
  return cell("Answers", "classes", mix(upstream.classes), make("div", {class: "counts"},
    ...there.flatMap(([name, number]) => [make("span", {}, `${name} ${count(number)}`), " "])));
}
function failuresCell(upstream) {
  const there = Object.entries(upstream.failures).filter(([, number]) => number);
  const found = there.flatMap(([name, number]) =>
    [make("span", {class: "bad"}, `${name} ${count(number)}`), " "]);
  return cell("Failures", "failures", ...(found.length ? found : ["none"]),
    upstream.retries ? sub(`${count(upstream.retries)} retried elsewhere`) : "");
}
const cell = (label, style, ...children) =>
  make("td", {role: "cell", "data-label": label, class: style}, ...children);
const weightOf = ({weight, configured_weight}) => weight === configured_weight
  ? `weight ${weight}` : `weight ${weight}, file:\u00a0${configured_weight}`;
const CELLS = [
  nameCell,
  stateCell,
  (upstream) => cell("Share, 1\u00a0min", "share", percent(upstream.share_percent),
    sub(weightOf(upstream))),
  (upstream) => cell("In flight", "flight", count(upstream.in_flight),
    upstream.max_connections ? ` of ${count(upstream.max_connections)}` : "",
    sub(`${count(upstream.idle)} idle`)),
  (upstream) => cell("Requests", "rate", rate(upstream.rate),
    sub(`${count(upstream.total)} in all`)),
  answersCell,
  failuresCell,
  (upstream) => cell("p50 / p95 / p99, ms, 1\u00a0min", "latency",
    [upstream.p50_ms, upstream.p95_ms, upstream.p99_ms].map(milliseconds).join(" / ")),
  (upstream) => cell("Last minute", "minute", strip(upstream.strip)),
];
const SORT_VALUES = {
  name: (upstream) => upstream.name,
  state: (upstream) => ["bad", "warn", "off", "good"].indexOf(LEVELS[upstream.kind]),
  share: (upstream) => upstream.share_percent,
  flight: (upstream) => upstream.in_flight,
  rate: (upstream) => upstream.rate,
  errors: (upstream) => upstream.classes["5xx"] ?? 0,
  failures: failuresOf,
  latency: (upstream) => upstream.p95_ms ?? -1,
};

const keyOf = ({name, address, port, group}) => JSON.stringify([name, address, port, group]);
function rowOf(upstream) {
  const key = keyOf(upstream);
  let row = rows.get(key);
  if (!row) {
    const button = make("button", {class: "button", type: "button"}, "Change…");
    button.setAttribute("aria-label", `Change ${upstream.name}`);
    button.addEventListener("click", () => openDialog(key));
    row = make("tr", {role: "row"}, ...CELLS.map((build) => build(upstream)),
      cell("", "action", button));
    rows.set(key, row);
  }
  CELLS.forEach((build, index) => settle(row.cells[index], build(upstream)));
  row.lastChild.hidden = !token;
  return [key, row];
}

function showUpstreams() {
  if (stats === null) return;
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = stats.upstreams.filter((upstream) => {
    const text = [upstream.name, upstream.group, endpoint(upstream.address, upstream.port), upstream.state,
      upstream.why, upstream.backup ? "backup" : ""].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const value = SORT_VALUES[sorting.key];
  if (value) {
    const order = (a, b) => typeof value(a) === "string" ? value(a).localeCompare(value(b))
      : value(a) - value(b);
    shown = shown.slice().sort((a, b) => sorting.down ? order(b, a) : order(a, b));
  }
  const wanted = shown.map(rowOf);
  for (const key of rows.keys()) {
    if (!stats.upstreams.some((upstream) =>
      keyOf(upstream) === key)) rows.delete(key);
  }
  const body = byId("upstreams"), present = [...body.children];
  // Moving a row takes the focus out of it, so rows that are in their places already stay.
  if (present.length !== wanted.length || wanted.some(([, row], at) => row !== present[at])) {
    body.replaceChildren(...wanted.map(([, row]) => row));
  }
  const all = stats.upstreams.length;
  byId("shown").textContent = shown.length < all ? `${shown.length} of ${all} shown` : `${all}`;
  byId("none").hidden = shown.length > 0 || all === 0;
  byId("change-head").hidden = !token;
}

/* The other parts, from top to bottom. */
function showFacts() {
  const fact = (name, ...value) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value));
  const reload = stats.last_reload;
  const facts = [
    fact("Listening", stats.listen.join(", "), ` (${stats.mode})`),
    fact("Configuration", stats.config_path, `, generation\u00a0${stats.generation}`),
    fact("Last reload", reload === null ? "none" : make("span", {class: reload.ok ? "" : "bad"},
      `${reload.ok ? "done" : "refused"} ${span(stats.time - reload.time)} ago`)),
    fact("Up for", span(stats.uptime)),
    fact(stats.pids.length > 1 ? "Processes" : "Process", stats.pids.join(", ")),
  ];
  settleChildren(byId("facts"), ...facts);
  byId("version").textContent = stats.version;
}
function showVerdict() {
  const {level, text, details} = stats.verdict;
  settleChildren(byId("verdict"),
    make("span", {class: `lamp ${level}`, "aria-hidden": "true"}, GLYPHS[level]),
    make("div", {}, make("h1", {}, text), details.length ? make("p", {}, details.join("; ")) : ""));
  document.title = `${text} – Atlas`;
  const reload = stats.last_reload;
  const refused = reload && !reload.ok ? [make("section", {class: "notice"},
    make("strong", {}, "The last configuration was refused"),
    ` ${span(stats.time - reload.time)} ago; generation\u00a0${reload.generation} stays in force.`,
    make("pre", {}, reload.error))] : [];
  settleChildren(byId("refused"), ...refused);
}
function tile({title, peak, number, unit, detail, picture}) {
  return make("div", {class: "tile"},
    make("h2", {}, title, peak ? make("small", {}, `peak ${peak}`) : ""),
    make("p", {class: "number"}, number, unit ? make("small", {}, ` ${unit}`) : ""),
    make("p", {class: "detail"}, ...detail), picture);
}
/* A tile with its number, the highest of the last minute, and the curve of it. */
function simpleTile(title, name, write, detail, beneath = "") {
  const history = (key) => stats.history.map((sample) => sample[key]);
  const [number, ...unit] = write(stats.totals[name]).split(" ");
  const top = Math.max(0, ...history(name));
  return tile({title, number, unit: unit.join(" "), detail, peak: top ? write(top) : "",
    picture: spark(history(name), beneath && history(beneath))});
}
function showTiles() {
  const totals = stats.totals;
  const errors = simpleTile("Errors", "error_percent", percent, ["answered with 5xx"]);
  const level = totals.error_percent >= 5 ? "bad" : totals.error_percent >= 1 ? "warn" : "";
  if (level) errors.querySelector(".number").classList.add(level);
  if (stats.history.some((sample) => sample.error_percent)) errors.lastChild.classList.add("alarm");
  byId("tiles").replaceChildren(
    simpleTile("Requests", "rate", rate, [`${count(totals.requests)} in all`]),
    simpleTile("Connections", "connections", count, [`of ${count(totals.max_connections)}`]),
    errors,
    simpleTile("Latency, p50", "p50_ms", (value) => `${milliseconds(value)} ms`,
      [`p95 ${milliseconds(totals.p95_ms)}, `, second(`p99 ${milliseconds(totals.p99_ms)}`)],
      "p99_ms"),
    simpleTile("Bytes out", "bytes_out_rate", bytesRate,
      [second(`in ${bytesRate(totals.bytes_in_rate)}`)], "bytes_in_rate"),
    simpleTile("Queue", "queue", count, ["waiting for room"]));
}
function showLogs() {
  const line = (instant, ...what) => make("li", {}, when(instant), make("div", {class: "what"}, ...what));
  const events = stats.events.map((event) => line(event.time,
    event.upstream ? make("b", {}, `${event.upstream} `) : "", event.text));
  const errors = stats.errors.map((error) => line(error.time, make("b", {}, `${error.status} `),
    make("code", {}, error.line),
    error.count > 1 ? make("b", {class: "times"}, `× ${count(error.count)}`) : "",
    sub(`${error.text}; ${error.count > 1 ? "last client" : "client"} ${error.client}`
      + (error.upstream === "-" ? "" : `, upstream ${error.upstream}`)
      + (["-", "default"].includes(error.group) ? "" : `, group ${error.group}`))));
  const nothing = (text) => [make("li", {}, make("span", {class: "sub"}, text))];
  settleChildren(byId("events"), ...(events.length ? events : nothing("None yet.")));
  settleChildren(byId("errors"), ...(errors.length ? errors : nothing("None so far.")));
  announce();
}
/* Screen readers hear what is new, not every number that moves. */
function announce() {
  const latest = stats.events[0]?.time ?? 0;
  if (newest !== null && latest > newest) {
    const fresh = stats.events.filter((event) => event.time > newest).reverse();
    byId("news").textContent = fresh.map((event) => `${event.upstream} ${event.text}`).join(". ");
  }
  newest = latest;
}

function show(document_) {
  stats = document_;
  showFacts(); showVerdict(); showTiles(); showUpstreams(); showLogs();
  byId("read-only").hidden = stats.may_steer;
  byId("token-form").hidden = !stats.may_steer || Boolean(token);
  byId("token-held").hidden = !token;
  byId("lost").hidden = true;
  showAsking();
}

/* Asking again and again. A page that nobody looks at asks nothing. */
let timer = 0;
async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const answer = await fetch("stats.json", {signal: AbortSignal.timeout(PATIENCE)});
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
  } catch (error) {
    const lost = byId("lost");
    const since = stats === null ? "" : ` The numbers are those of ${when(stats.time).textContent}.`;
    lost.textContent = `Atlas does not answer; trying again.${since}`;
    lost.title = String(error);
    lost.hidden = false;
  } finally {
    clearTimeout(timer);
    timer = setTimeout(poll, PERIOD);
  }
}

/* Asking for a change, with the token; returns the refusal, or "". */
async function post(path, wanted, key = token) {
  // A field carries bytes: a token beyond ASCII is sent as UTF-8, a character for each byte.
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  try {
    const answer = await fetch(path, {
      method: "POST", signal: AbortSignal.timeout(PATIENCE),
      headers: {"Authorization": `Bearer ${bytes}`, "Content-Type": "application/json"},
      body: JSON.stringify(wanted),
    });
    if (answer.status === 401) setToken("");
    return answer.ok ? "" : await answer.text();
  } catch (error) {
    return `Atlas did not answer: ${error.message}`;
  }
}

/* How a balancer thinks: a waterfall for each of the last exchanges, which opens to the candidates.
   All bars have the same scale, that of the longest one, or 2 ms would look like 400. */
const STAGES = ["head", "choice", "connect", "wait", "body"];
const WHOLE = 1000, LEAST = 4;
const exchanges = new Map();  // id -> {item, row}; an exchange never changes, but its bar does
let longest = 0;  // milliseconds; the scale of all bars
let areSeen = false;  // is the section on the screen?
let exchangeTimer = 0;

function sayWanted({one_in, next_from}) {
  const parts = [];
  if (one_in) parts.push(one_in === 1 ? "every exchange" : `one exchange in ${count(one_in)}`);
  if (next_from) parts.push(`the next from ${next_from}`);
  return `Candidates are noted for ${parts.join(" and ") || "none at present"}.`;
}
function exchangeItem(item) {
  const where = item.upstream === "-" ? "no upstream" : item.upstream;
  const summary = make("summary", {}, when(item.time), " ", make("b", {}, String(item.status)),
    make("code", {}, item.line), `${where}, ${milliseconds(item.total_ms)} ms`, bar(item),
    sub(sayStages(item)));
  // Beside a much longer one its bar is a dot, so here it has a scale of its own.
  const thoughts = make("div", {class: "thoughts"}, bar(item, item.total_ms),
    sub(`the same, from 0 to ${milliseconds(item.total_ms)} ms`), ...thoughtsOf(item));
  return make("li", {}, make("details", {}, summary, thoughts));
}
function bar(item, whole = longest) {
  const spans = STAGES.map((stage) => item[`${stage}_ms`] ?? 0);
  const picture = draw("svg", {class: "fall", viewBox: `0 0 ${WHOLE} 10`,
    preserveAspectRatio: "none", "aria-hidden": "true"});
  let begin = 0;
  STAGES.forEach((stage, index) => {
    if (spans[index]) {
      picture.append(draw("rect", {class: `stage-${stage}`, y: 0, height: 10,
        x: Math.min(begin * WHOLE, WHOLE - LEAST).toFixed(1),
        width: Math.max(LEAST, spans[index] / (whole || 1) * WHOLE).toFixed(1)}));
    }
    begin += spans[index] / (whole || 1);
  });
  return picture;
}
function sayStages(item) {
  const parts = STAGES.filter((stage) => item[`${stage}_ms`] !== null).map((stage) =>
    `${stage} ${milliseconds(item[`${stage}_ms`])}`
    + (stage === "connect" && item.reused ? " (reused)" : ""));
  const told = [`${parts.join(", ")} ms`, `client ${item.client}`];
  if (item.end !== "done") told.push(item.end);
  if (item.request_id) told.push(`id ${item.request_id}`);
  if (item.choices !== null) told.push("explained");
  return told.join("; ");
}
function thoughtsOf(item) {
  const thoughts = (item.choices ?? []).flatMap(choiceOf);
  if (item.route) thoughts.unshift(make("p", {}, item.route));
  if (item.choices === null) thoughts.push(make("p", {}, "Its candidates were not noted."));
  else if (!item.choices.length) thoughts.push(make("p", {}, "It did not come to a choice."));
  if (item.failures.length) {
    const failed = item.failures.map(({upstream, stage}) => `${upstream} (${stage})`);
    thoughts.push(make("p", {}, `Failed attempts: ${failed.join(", ")}`));
  }
  return thoughts;
}
function choiceOf(choice) {
  const list = make("ul", {class: "candidates"});
  for (const candidate of choice.candidates) {
    const isChosen = candidate.name === choice.chosen && !candidate.left_out;
    list.append(make("li", isChosen ? {class: "chosen"} : {}, make("b", {}, candidate.name), " ",
      make("span", {}, sayCandidate(candidate, isChosen))));
  }
  const others = Object.entries(choice.others).map(([kind, number]) => `${count(number)} ${kind}`);
  if (others.length) {
    list.append(make("li", {}, make("b", {}, "others"), " ", make("span", {}, others.join(", "))));
  }
  return [make("p", {}, make("b", {}, `${choice.strategy} chose ${choice.chosen || "nobody"}`),
    `: ${choice.waits || choice.cause}`), list];
}
function sayCandidate(candidate, isChosen) {
  const leftOut = candidate.left_out ? `left out: ${candidate.left_out}` : "";
  return [isChosen ? "chosen" : "", candidate.score, leftOut].filter(Boolean).join("; ");
}

function rescale(whole) {
  byId("scale").textContent = whole ? `Bars from 0 to ${milliseconds(whole)} ms.` : "";
  if (whole === longest) return;
  longest = whole;
  for (const {item, row} of exchanges.values()) row.querySelector(".fall").replaceWith(bar(item));
}
/* What is opened or has the focus stays, however many exchanges have come since. Nothing that is
   in its place is moved: it would lose the focus. */
function showExchanges(told) {
  byId("wanted").textContent = sayWanted(told);
  const wanted = new Set(told.exchanges.map((item) => item.id));
  for (const [id, {row}] of exchanges) {
    if (!wanted.has(id) && !row.firstChild.open && !row.contains(document.activeElement)) {
      exchanges.delete(id);
    }
  }
  const shown = [...exchanges.values()].map(({item}) => item).concat(told.exchanges);
  rescale(Math.max(0, ...shown.map((item) => item.total_ms)));
  for (const item of told.exchanges) {
    if (!exchanges.has(item.id)) exchanges.set(item.id, {item, row: exchangeItem(item)});
  }
  const ordered = [...exchanges.values()].sort((one, other) => other.item.time - one.item.time);
  const rows = ordered.map(({row}) => row), known = new Set(rows), list = byId("exchanges");
  for (const row of [...list.children]) if (!known.has(row)) row.remove();
  let next = list.firstChild;
  for (const row of rows) {
    if (row === next) next = next.nextSibling;
    else list.insertBefore(row, next);
  }
}
async function pollExchanges() {
  clearTimeout(exchangeTimer);
  if (!areSeen || document.hidden) return;
  try {
    const answer = await fetch("explain.json", {signal: AbortSignal.timeout(PATIENCE)});
    if (answer.ok) showExchanges(await answer.json());
  } catch {
    // The poll of the numbers says that Atlas does not answer.
  } finally {
    clearTimeout(exchangeTimer);
    exchangeTimer = setTimeout(pollExchanges, PERIOD);
  }
}
function showAsking() {
  byId("ask-form").hidden = !token;
}
async function askForMore(event) {
  event.preventDefault();
  const wanted = {}, oneIn = byId("one-in").value, nextFrom = byId("next-from").value.trim();
  if (oneIn !== "") wanted.one_in = Number(oneIn);
  if (nextFrom !== "") wanted.next_from = nextFrom;
  const refusal = await post("-/explain", wanted);
  byId("ask-refusal").textContent = refusal;
  byId("ask-refusal").hidden = !refusal;
  if (!refusal) pollExchanges();
}
function listenToExchanges() {
  byId("ask-form").addEventListener("submit", askForMore);
  document.addEventListener("visibilitychange", pollExchanges);
  new IntersectionObserver((entries) => {
    areSeen = entries.at(-1).isIntersecting;
    pollExchanges();
  }).observe(byId("thinking"));
}

/* Changing an upstream: a dialog that says what it is going to do. */
const dialog = byId("dialog");
let chosen = "";  // the key of the upstream that the dialog is about
const find = (key) => stats.upstreams.find((upstream) =>
  keyOf(upstream) === key);
const stateBy = (upstream) =>
  upstream.kind === "drain" || upstream.kind === "maintenance" ? upstream.kind : "ready";

function openDialog(key) {
  const upstream = find(key);
  if (!upstream) return;
  chosen = key;
  byId("dialog-title").textContent = `Change ${upstream.name}`;
  dialog.querySelector(`[value=${stateBy(upstream)}]`).checked = true;
  const weight = byId("weight");
  weight.placeholder = String(upstream.configured_weight);
  weight.value = upstream.weight === upstream.configured_weight ? "" : upstream.weight;
  byId("refusal").hidden = true;
  weigh();
  dialog.showModal();
}
function wantedChange(upstream) {
  const change = {};
  const state = dialog.querySelector("[name=state]:checked").value;
  if (state !== stateBy(upstream)) change.state = state;
  const text = byId("weight").value;
  const before = upstream.weight === upstream.configured_weight ? "" : String(upstream.weight);
  if (text !== before) change.weight = text === "" ? null : Number(text);
  return change;
}
/* Says on the button what it will do, and warns before the last upstream goes. */
function weigh() {
  const upstream = find(chosen);
  if (!upstream) { dialog.close(); return; }
  const change = wantedChange(upstream);
  const parts = [];
  if (change.state) parts.push(`set to ${change.state}`);
  if ("weight" in change) parts.push(change.weight === null ? "weight as in the file"
    : `weight ${change.weight}`);
  const text = parts.join(", ");
  const apply = byId("apply");
  apply.disabled = !parts.length;
  apply.textContent = parts.length ? text[0].toUpperCase() + text.slice(1) : "Change nothing";
  const leaves = (change.state && change.state !== "ready") || change.weight === 0;
  const takes = (other) => ["up", "half-open"].includes(other.kind) && other.weight > 0;
  const isLast = leaves && takes(upstream)
    && !stats.upstreams.some((other) => other !== upstream && other.group === upstream.group
      && takes(other));
  byId("warning").textContent = "This is the last upstream that takes new clients: "
    + "without it they are answered 503.";
  byId("warning").hidden = !isLast;
}
async function applyChange() {
  const upstream = find(chosen);
  if (!upstream) return;
  const path = `-/upstreams/${encodeURIComponent(upstream.name)}`;
  const refusal = await post(path, wantedChange(upstream));
  byId("refusal").textContent = refusal;
  byId("refusal").hidden = !refusal;
  if (!refusal) { dialog.close(); poll(); }
}
/* A wrong one is noticed here, not at the first change that it is for. */
async function tryToken(value) {
  const refusal = await post("-/token", {}, value);
  byId("token-refusal").textContent = refusal;
  byId("token-refusal").hidden = !refusal;
  setToken(refusal ? "" : value);
}
function setToken(value) {
  token = value;
  byId("token").value = "";
  if (stats !== null) show(stats);
}

function sortBy(key, down) {
  sorting = {key, down};
  for (const head of document.querySelectorAll("[data-sort]")) {
    if (head.dataset.sort === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  byId("sorting").value = key;
  showUpstreams();
}

function listen() {
  for (const head of document.querySelectorAll("[data-sort]")) {
    const button = make("button", {type: "button"}, head.firstChild.data);
    head.firstChild.replaceWith(button);
    button.addEventListener("click", () => {
      const key = head.dataset.sort, first = key !== "name" && key !== "state";
      // Round and round: the more telling order, the other one, the file's.
      if (sorting.key !== key) sortBy(key, first);
      else if (sorting.down === first) sortBy(key, !first);
      else sortBy("", false);
    });
    byId("sorting").append(make("option", {value: head.dataset.sort}, button.textContent));
  }
  byId("sorting").addEventListener("change", () => {
    const key = byId("sorting").value;
    sortBy(key, key !== "" && key !== "name" && key !== "state");
  });
  byId("filter").addEventListener("input", showUpstreams);
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    tryToken(byId("token").value);
  });
  byId("token-held").addEventListener("submit", (event) => { event.preventDefault(); setToken(""); });
  dialog.addEventListener("input", weigh);
  dialog.querySelector("form").addEventListener("submit", (event) => {
    if (event.submitter?.value === "cancel") return;
    event.preventDefault();
    if (!byId("apply").disabled) applyChange();
  });
  document.addEventListener("visibilitychange", poll);
  listenToExchanges();
  for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;
}

listen();
poll();
})();
