/* How a balancer thinks: the same as waterfall.py, from explain.json. */
const STAGES = ["head", "choice", "connect", "wait", "body"];
const WHOLE = 1000, LEAST = 4;
const exchanges = new Map();  // id -> [time, list item]; an exchange never changes
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
  const thoughts = make("div", {class: "thoughts"}, ...thoughtsOf(item));
  return make("li", {}, make("details", {}, summary, thoughts));
}
function bar(item) {
  const spans = STAGES.map((stage) => item[`${stage}_ms`] ?? 0);
  const total = spans.reduce((a, b) => a + b, 0) || 1;
  const picture = draw("svg", {class: "fall", viewBox: `0 0 ${WHOLE} 10`,
    preserveAspectRatio: "none", "aria-hidden": "true"});
  let begin = 0;
  STAGES.forEach((stage, index) => {
    if (spans[index]) {
      picture.append(draw("rect", {class: `stage-${stage}`, y: 0, height: 10,
        x: Math.min(begin * WHOLE, WHOLE - LEAST).toFixed(1),
        width: Math.max(LEAST, spans[index] / total * WHOLE).toFixed(1)}));
    }
    begin += spans[index] / total;
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

/* What is opened or has the focus stays, however many exchanges have come since. Nothing that is
   in its place is moved: it would lose the focus. */
function showExchanges(told) {
  byId("wanted").textContent = sayWanted(told);
  for (const item of told.exchanges) {
    if (!exchanges.has(item.id)) exchanges.set(item.id, [item.time, exchangeItem(item)]);
  }
  const wanted = new Set(told.exchanges.map((item) => item.id));
  for (const [id, [, row]] of exchanges) {
    if (!wanted.has(id) && !row.firstChild.open && !row.contains(document.activeElement)) {
      exchanges.delete(id);
    }
  }
  const ordered = [...exchanges.values()].sort(([one], [other]) => other - one);
  const rows = ordered.map(([, row]) => row), known = new Set(rows), list = byId("exchanges");
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
  if (byId("thinking")) byId("ask-form").hidden = !token;
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
  if (!byId("thinking")) return;
  byId("ask-form").addEventListener("submit", askForMore);
  document.addEventListener("visibilitychange", pollExchanges);
  new IntersectionObserver((entries) => {
    areSeen = entries.at(-1).isIntersecting;
    pollExchanges();
  }).observe(byId("thinking"));
}
