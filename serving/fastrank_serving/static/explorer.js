// The explorer ranks one user under every inference type through /invocations, and shows the
// answers. All text from the server is set as text; nothing is ever parsed as HTML.

const FIRST = "deterministic"; // the ranking that the others are compared with
const DECADES = 3; // of the temperature slider, on each side of the model's own temperature
const PAUSE = 80; // ms without a change before requests are sent
const PATIENCE = 30_000; // ms to wait for an answer
const KEPT_TIMES = 101;
const KEPT_TITLES = 20_000;
const LONGEST = 4_000; // characters of an address
const LONGEST_TITLE = 160;
// An error in one of these fields affects every inference type.
// Without inference_type nothing can be compared; without seed, rankings made here would count in
// evaluations.
const WANTED = ["inference_type", "seed"];
const OPTIONAL = ["k", "temperature", "epsilon", "head", "m", "factor", "score", "params"];
const SHARED_FIELDS = ["user_id", "k", "seed", "request_id", "score", "params"];

const $ = (id) => document.getElementById(id);
const state = { user: "", k: 10, temperature: 1, epsilon: 0.1, head: 0, m: 1000, factor: 0.1, seed: "0", bars: "linear", ids: false, score: "", params: "", rules: "" };
const usual = {}; // defaults; the address contains only values that differ
const cards = new Map();
const titles = new Map();
let about = null;
let changes = 0; // since the page was opened
let running = false;

class Problem extends Error {
  constructor(message, field = null, code = null, retryAfter = null) {
    super(message);
    Object.assign(this, { field, code, retryAfter });
  }
}

// ---- Asking -------------------------------------------------------------------------------

async function ask(address, body = null) {
  const options = { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" };
  if (body !== null) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  const began = performance.now();
  let response, text;
  try {
    response = await fetch(address, options);
    text = await response.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Problem(late ? "The server did not answer in time." : "The server cannot be reached.");
  }
  const milliseconds = timeOf(response.url) ?? performance.now() - began;
  if (!response.ok) throw refusal(response.status, text);
  // Numbers here cannot hold 64-bit ids: they are kept as text. A quotation mark
  // inside a value is escaped, so that this name can only be the member's own.
  const safe = text.replace(/"item_ids":\[(-?\d[\d,-]*)\]/, (_, ids) => `"item_ids":["${ids.split(",").join('","')}"]`);
  try {
    return { found: JSON.parse(safe), milliseconds };
  } catch {
    throw new Problem("The server's answer could not be read.");
  }
}

// The network's time, if the browser tells it: without waiting for this page's own thread.
function timeOf(address) {
  const seen = performance.getEntriesByName(address, "resource").at(-1);
  performance.clearResourceTimings(); // the browser keeps only a few
  return seen && seen.responseEnd > seen.requestStart ? seen.responseEnd - seen.requestStart : null;
}

function refusal(status, text) {
  try {
    const { message, field, code, retry_after_s: after } = JSON.parse(text).error;
    const when = after ? ` Try again in ${after} s.` : "";
    return new Problem(`${message}.${when}`, field, code, after);
  } catch {
    return new Problem(`The server refused with status ${status}.`);
  }
}

async function titlesOf(version, ids) {
  const key = (id) => `${version} ${id}`;
  if (!about.has_titles) return ids.map(() => "");
  if (titles.size > KEPT_TITLES) titles.clear();
  let wanted = [...new Set(ids)].filter((id) => !titles.has(key(id)));
  while (wanted.length) {
    let address = "explorer/titles?", count = 0;
    while (count < Math.min(wanted.length, about.max_titles) && (!count || address.length < LONGEST))
      address += `id=${encodeURIComponent(wanted[count++])}&`;
    const some = wanted.slice(0, count);
    const { found } = await ask(address.slice(0, -1));
    some.forEach((id, j) => titles.set(key(id), found.titles[j]));
    wanted = wanted.slice(count);
  }
  return ids.map((id) => titles.get(key(id)) ?? "");
}

// ---- Ranking ------------------------------------------------------------------------------

let timer = 0;
function changed(pause = PAUSE) {
  changes += 1;
  showState();
  clearTimeout(timer);
  timer = setTimeout(() => {
    writeHash();
    rankAll();
  }, pause);
}

function may(field) {
  return about.may.includes(field);
}

// One request after another, so that each time measures one ranking alone.
async function rankAll() {
  if (running) return; // the running loop notices the change
  running = true;
  let seen = -1;
  try {
    while (seen !== changes) {
      seen = changes;
      await sweep(() => seen !== changes);
    }
  } finally {
    running = false;
    for (const card of cards.values()) card.box.setAttribute("aria-busy", "false");
  }
}

async function sweep(outdated) {
  const chosen = { ...state };
  const wrong = mistake(chosen);
  markMistake(wrong);
  if (wrong) return stop(wrong);
  for (const card of cards.values()) card.box.setAttribute("aria-busy", "true");
  let best = null, refused = 0;
  for (const { name, params } of about.inference_types) {
    const body = { user_id: chosen.user, inference_type: name, seed: chosen.seed };
    if (may("k")) body.k = chosen.k;
    for (const param of params) if (param in chosen && may(param)) body[param] = chosen[param];
    if (chosen.score.trim() && may("score")) body.score = chosen.score.trim();
    if (chosen.params.trim() && may("params")) body.params = paramsOf(chosen.params);
    if (chosen.rules && may("rules")) body.rules = chosen.rules;
    const card = cards.get(name);
    try {
      const { found, milliseconds } = await ask("invocations", body);
      if (outdated()) return;
      if (found.seed_source !== "caller") throw new Problem("The server used its own seed instead of this page's.");
      const names = await titlesOf(found.model_version, found.item_ids);
      if (outdated()) return;
      if (name === FIRST) best = found.item_ids;
      card.times.push(milliseconds);
      if (card.times.length > KEPT_TIMES) card.times.shift();
      showRanking(card, found, names, name === FIRST ? found.item_ids : best, milliseconds);
    } catch (problem) {
      if (outdated()) return;
      if (!(problem instanceof Problem)) throw problem;
      if (problem.code === null || problem.retryAfter || SHARED_FIELDS.includes(problem.field)) {
        markMistake(problem);
        return stop(problem);
      }
      markMistake(problem);
      showRefusal(card, problem);
      refused += 1;
    }
    card.box.setAttribute("aria-busy", "false");
  }
  $("alert").hidden = true;
  const kinds = about.inference_types.length - refused;
  say(`${kinds} rankings for user ${chosen.user}, drawn with seed ${chosen.seed}.`);
}

// Numbers, true and false, or else text; quotes make anything text.
function paramsOf(text) {
  const found = {}, pair = /\s*([^=,]*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^,]*?)\s*(,|$)/y;
  for (let end = ","; end; ) {
    const match = pair.exec(text);
    if (!match || !match[1] || match[1] in found) return null;
    found[match[1]] = paramOf(match[2]);
    end = match[3];
  }
  return found;
}

function paramOf(text) {
  if (/^".*"$/s.test(text)) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
  if (text === "true" || text === "false") return text === "true";
  return text && Number.isFinite(Number(text)) ? Number(text) : text;
}

function mistake({ user, k, temperature, epsilon, head, m, factor, seed, params }) {
  if (!user) return new Problem("Choose a user.", "user_id");
  if (!Number.isInteger(k)) return new Problem("k: expected a whole number.", "k");
  if (!Number.isFinite(temperature)) return new Problem("temperature: expected a number.", "temperature");
  if (!Number.isFinite(epsilon)) return new Problem("epsilon: expected a number.", "epsilon");
  if (!Number.isInteger(head)) return new Problem("head: expected a whole number.", "head");
  if (!Number.isInteger(m)) return new Problem("m: expected a whole number.", "m");
  if (!Number.isFinite(factor)) return new Problem("factor: expected a number.", "factor");
  if (!/^(0|[1-9]\d{0,19})$/.test(seed)) return new Problem("seed: expected a whole number, 0 or above, without leading zeros.", "seed");
  if (params.trim() && !paramsOf(params)) return new Problem("params: expected name = value, separated by commas, each name once.", "params");
  return null;
}

function markMistake(problem) {
  for (const [field, id] of [["user_id", "user"], ["k", "k"], ["temperature", "temperature"], ["epsilon", "epsilon"], ["head", "head"], ["m", "m"], ["factor", "factor"], ["seed", "seed"], ["score", "score"], ["params", "params"]])
    $(id).setAttribute("aria-invalid", String(problem?.field === field));
}

// Old rankings must not stay below an error.
function stop(problem) {
  for (const card of cards.values()) {
    card.box.setAttribute("aria-busy", "false");
    card.facts.replaceChildren();
    card.list.replaceChildren();
    card.refused.hidden = true;
  }
  $("alert").textContent = problem.message;
  $("alert").hidden = false;
  say("");
}

function say(text) {
  $("status").textContent = text;
}

// ---- Showing ------------------------------------------------------------------------------

function made(tag, names = "", text = null) {
  const element = document.createElement(tag);
  if (names) element.className = names;
  if (text !== null) element.textContent = text;
  return element;
}

function makeCards() {
  for (const { name, words } of about.inference_types) {
    const box = made("section", "card ranking");
    box.id = `ranking-${name}`;
    const heading = made("h2", "name");
    heading.id = `name-${name}`;
    name.split("_").forEach((word, j, parts) => {
      heading.append(j + 1 < parts.length ? `${word}_` : word, document.createElement("wbr"));
    });
    box.setAttribute("aria-labelledby", heading.id);
    const facts = made("dl"), list = made("ol"), refused = made("p", "refused");
    refused.hidden = true;
    box.append(heading, made("p", "what", `${words[0].toUpperCase()}${words.slice(1)}.`), facts, refused, list);
    cards.set(name, { box, facts, list, refused, times: [] });
    $("rankings").append(box);
  }
}

function showRefusal(card, problem) {
  card.facts.replaceChildren();
  card.list.replaceChildren();
  card.refused.textContent = problem.message;
  card.refused.hidden = false;
}

function showRanking(card, found, names, best, milliseconds) {
  card.refused.hidden = true;
  // Under some rules there is no deterministic ranking to compare with.
  const places = new Map((best ?? []).map((id, j) => [id, j]));
  const { pin = {}, pin_where: pinWhere = {} } = found.rules?.content ?? {};
  let same = 0, moved = 0;
  const rows = found.item_ids.map((id, j) => {
    const was = best === null ? j : places.get(id);
    if (was === j) same += 1;
    else if (was !== undefined) moved += 1;
    const line = row(j, id, names[j], found.log_propensities[j], was, found.n_eligible);
    const pinned = j + 1 in pin ? "rules pin it to this place" : pinWhere[j + 1];
    if (pinned) line.children[1].prepend(mark("pinned", "pin", j + 1 in pin ? pinned : `rules require here: ${pinned}`));
    return line;
  });
  const facts = [];
  const { user_temperature: own, ...params } = found.policy.params;
  const given = Object.entries(params);
  for (const [param, value] of given.length ? given : [["parameter", null]])
    facts.push([param, value === null ? "none" : short(value)]);
  const differ = `${moved} at another place, ${rows.length - same - moved} new`;
  if (best !== null) facts.push(["unchanged", `${same} of ${rows.length}`, best === found.item_ids ? "" : differ]);
  if (found.rules) facts.push(["rules", found.rules.name, JSON.stringify(found.rules.content), "words"]);
  facts.push(["probability", chance(found.log_propensity), `of the whole ranking; its logarithm is ${short(found.log_propensity)}`, "whole"]);
  facts.push(["made by", found.made_by, `${found.n_scored.toLocaleString("en")} items scored`]);
  if (found.is_candidate) {
    const count = found.is_candidate.filter((each) => each).length;
    facts.push(["candidates", `${count} of ${rows.length}`, `places that show one of ${found.n_candidates.toLocaleString("en")}`]);
  }
  const middle = [...card.times].sort((a, b) => a - b)[card.times.length >> 1];
  facts.push(["ms (median)", `${milliseconds.toFixed(1)} (${middle.toFixed(1)})`, `of ${card.times.length} requests`]);
  if (own !== undefined) facts.push(["the user's factor", short(own), "included in the temperature"]);
  if (found.propensity_kind !== "exact") facts.push(["propensities", found.propensity_kind]);
  if (found.is_fallback) facts.push(["fallback", found.policy.name, "the model does not know the user", "words"]);
  card.facts.replaceChildren(...facts.flatMap(([name, value, title, names]) => {
    const dd = made("dd", names ?? "", value);
    if (title) dd.title = title;
    return [made("dt", "", name), dd];
  }));
  card.list.replaceChildren(...rows);
}

function row(place, id, title, logPropensity, was, eligible) {
  const line = made("li", was === undefined ? "new" : was === place ? "same" : "moved");
  const name = made("span", "title", cut(title) || id), bar = made("span", "bar"), full = made("span");
  if (title) name.append(made("small", "id", id));
  name.title = id;
  line.append(made("span", "place", String(place + 1)), name);
  if (was === undefined) line.append(mark("new", "new", "not in the deterministic ranking"));
  else if (was !== place) {
    const far = Math.abs(was - place), up = was > place;
    const words = `${far} ${far === 1 ? "place" : "places"} ${up ? "higher" : "lower"} than in the deterministic ranking`;
    line.append(mark("moved", `${up ? "▲" : "▼"}${far}`, words));
  }
  bar.setAttribute("aria-hidden", "true");
  full.style.width = `${100 * share(logPropensity, eligible)}%`;
  bar.append(full);
  const number = made("span", "number");
  number.append(made("span", "spoken", "probability "), chance(logPropensity));
  line.append(bar, number);
  return line;
}

function cut(title) {
  return title.length > LONGEST_TITLE ? `${title.slice(0, LONGEST_TITLE)}…` : title;
}

function mark(names, text, words) {
  const element = made("span", `mark ${names}`);
  element.title = words;
  const shown = made("span", "", text);
  shown.setAttribute("aria-hidden", "true");
  element.append(shown, made("span", "spoken", words));
  return element;
}

// The length of a bar: the probability, or its logarithm, starting at a tenth of 1 / eligible.
function share(logPropensity, eligible) {
  if (logPropensity === null) return 0;
  if (state.bars === "linear") return Math.min(1, Math.exp(logPropensity));
  return Math.min(1, Math.max(0, 1 + logPropensity / Math.log(10 * Math.max(eligible, 2))));
}

function chance(logPropensity) {
  if (logPropensity === null) return "0";
  const p = Math.exp(logPropensity);
  if (p >= 1) return "100\u00a0%";
  if (p >= 0.9995) return "> 99.9\u00a0%";
  if (p >= 0.001) return `${(100 * p).toPrecision(p >= 0.1 ? 3 : 2)}\u00a0%`;
  if (p >= 1e-6) return `1\u00a0in\u00a0${Math.round(Number((1 / p).toPrecision(3))).toLocaleString("en")}`;
  const tens = -logPropensity / Math.LN10;
  const figures = 10 ** (tens - Math.floor(tens));
  const power = [...String(Math.floor(tens))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("");
  return `1\u00a0in\u00a0${figures.toFixed(1)}·10${power}`;
}

function short(number) {
  return String(Number(number.toPrecision(4)));
}

// ---- Choosing -----------------------------------------------------------------------------

function numberOf(text) {
  return text.trim() === "" ? NaN : Number(text);
}

function newSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.user = given.get("user") ?? state.user;
  for (const name of ["k", "temperature", "epsilon", "head", "m", "factor"]) if (given.has(name)) state[name] = numberOf(given.get(name));
  for (const name of ["seed", "score", "params"]) state[name] = given.get(name) ?? state[name];
  state.rules = given.get("rules") ?? "";
  state.ids = given.get("ids") === "1";
  state.bars = given.get("bars") === "log" ? "log" : "linear";
}

function showState() {
  for (const name of ["user", "k", "temperature", "epsilon", "head", "m", "factor", "seed", "bars", "score", "params", "rules"]) {
    const field = $(name);
    // Leave a field alone while somebody types in it.
    if (field !== document.activeElement) field.value = typeof state[name] === "number" && Number.isNaN(state[name]) ? "" : state[name];
  }
  $("ids").checked = state.ids;
  $("rankings").classList.toggle("with-ids", state.ids);
  const slider = $("temperature-slider");
  if (slider !== document.activeElement && state.temperature > 0) slider.value = Math.log10(state.temperature);
  slider.setAttribute("aria-valuetext", String(state.temperature));
  if ($("epsilon-slider") !== document.activeElement) $("epsilon-slider").value = state.epsilon;
}

// Not at every step of a slider: browsers refuse addresses that change too often.
function writeHash() {
  const { user, k, temperature, epsilon, seed, bars } = state;
  const said = new URLSearchParams({ user, k, temperature, epsilon, seed });
  for (const [name, value] of Object.entries(usual)) if (state[name] !== value) said.set(name, state[name]);
  if (bars !== "linear") said.set("bars", bars);
  if (state.ids) said.set("ids", "1");
  history.replaceState(null, "", `#${said}`);
}

function listen() {
  $("temperature-slider").addEventListener("input", (event) => {
    state.temperature = Number((10 ** Number(event.target.value)).toPrecision(3));
    changed();
  });
  $("epsilon-slider").addEventListener("input", (event) => {
    state.epsilon = Number(event.target.value);
    changed();
  });
  for (const name of ["k", "temperature", "epsilon", "head", "m", "factor"])
    $(name).addEventListener("input", (event) => {
      state[name] = numberOf(event.target.value);
      changed(3 * PAUSE);
    });
  $("seed").addEventListener("input", (event) => {
    state.seed = event.target.value.trim();
    changed(3 * PAUSE);
  });
  for (const name of ["score", "params"])
    $(name).addEventListener("input", (event) => {
      state[name] = event.target.value;
      changed(3 * PAUSE);
    });
  $("again").addEventListener("click", () => {
    state.seed = newSeed();
    changed(0);
  });
  $("bars").addEventListener("change", (event) => {
    state.bars = event.target.value;
    changed(0);
  });
  $("rules").addEventListener("change", (event) => {
    state.rules = event.target.value;
    changed(0);
  });
  $("ids").addEventListener("change", (event) => {
    state.ids = event.target.checked;
    showState(); // nothing to request
    writeHash();
  });
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault(); // Enter in a field
    if (document.activeElement !== $("user")) changed(0);
  });
  addEventListener("hashchange", () => {
    readHash();
    changed(0);
  });
}

// The combobox of WAI-ARIA: the focus stays in the field, and the list follows it.
function suggest() {
  const field = $("user"), list = $("users");
  let shown = [], at = -1, asked = 0, pause = 0;

  const close = () => {
    asked += 1; // ignore answers that are on their way
    clearTimeout(pause);
    list.hidden = true;
    at = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  };
  const take = (user) => {
    close();
    field.value = user;
    state.user = user;
    changed(0);
  };
  const point = (to) => {
    at = to;
    shown.forEach((option, j) => option.setAttribute("aria-selected", String(j === at)));
    if (at < 0) return field.removeAttribute("aria-activedescendant");
    field.setAttribute("aria-activedescendant", shown[at].id);
    shown[at].scrollIntoView({ block: "nearest" });
  };
  const open = async (then = null) => {
    const mine = ++asked;
    let found;
    try {
      ({ found } = await ask(`explorer/users?prefix=${encodeURIComponent(field.value)}`));
    } catch (problem) {
      if (mine === asked) stop(problem);
      return;
    }
    if (mine !== asked) return;
    shown = found.users.map((user, j) => {
      const option = made("li", "", user);
      option.id = `user-${j}`;
      option.setAttribute("role", "option");
      // Before the field loses the focus.
      option.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        take(user);
      });
      return option;
    });
    list.replaceChildren(...shown);
    if (found.more) {
      const more = made("li", "more", "… and more: keep typing");
      more.setAttribute("role", "presentation");
      list.append(more);
    }
    list.hidden = !shown.length;
    field.setAttribute("aria-expanded", String(!list.hidden));
    point(-1);
    if (then && shown.length) point(then > 0 ? 0 : shown.length - 1);
    $("user-hint").textContent = shown.length
      ? "Type the start of an id; choose with the arrow keys, confirm with Enter."
      : "No id starts with this text.";
  };
  field.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(open, PAUSE);
  });
  field.addEventListener("focus", () => field.select());
  field.addEventListener("blur", () => {
    close();
    field.value = state.user; // discards text that was not confirmed
  });
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && !event.altKey) {
      event.preventDefault();
      if (list.hidden) open(step);
      else point((at + step + shown.length + (at < 0 && step < 0 ? 1 : 0)) % shown.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      take(at >= 0 ? shown[at].textContent : field.value);
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close();
    }
  });
}

// ---- Start --------------------------------------------------------------------------------

async function begin() {
  try {
    about = (await ask("explorer/about")).found;
  } catch (problem) {
    stop(problem);
    if (problem.retryAfter) setTimeout(begin, 1000 * problem.retryAfter);
    return;
  }
  $("alert").hidden = true;
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  $("model").textContent = `One user, every inference type · ${count(about.n_items, "item")} · ${count(about.n_users, "user")} · model ${about.model_version.slice(0, 12)}${about.in_force ? ` · ${about.in_force}; rankings here belong to no arm` : ""}`;
  Object.assign(state, about.params); // parameters of the server's policy, and of the model's
  Object.assign(usual, { head: state.head, m: state.m, factor: state.factor, score: "", params: "", rules: "" });
  if (about.score) $("score").placeholder = about.score.name;
  const columns = Object.keys(about.columns).join(", ");
  if (columns) $("score-hint").textContent = `An expression of dot (the dot product), parameters, and the columns ${columns}.`;
  for (const { name, params } of about.rules) {
    const option = made("option", "", params.length ? `${name} (${params.join(", ")})` : name);
    option.value = name;
    $("rules").append(option);
  }
  for (const field of OPTIONAL) $(field).closest(".control").hidden = !may(field);
  $("rules-control").hidden = !about.rules.length || !may("rules");
  const missing = WANTED.filter((field) => !may(field));
  if (missing.length) {
    $("controls").hidden = true;
    return stop(new Problem(`This server does not let clients set ${missing.join(" or ")} (--clients-may), and this page needs inference_type and seed.`));
  }
  state.k = Math.min(state.k, about.max_k);
  state.seed = newSeed();
  const middle = Math.log10(state.temperature);
  Object.assign($("temperature-slider"), { min: middle - DECADES, max: middle + DECADES, step: 0.05 });
  $("k").max = about.max_k;
  makeCards();
  listen();
  suggest();
  readHash();
  if (!state.user) state.user = await firstUser();
  if (!about.n_users) $("user-hint").textContent = "This model has items, but no users.";
  changed(0);
}

async function firstUser() {
  try {
    return (await ask("explorer/users?limit=1")).found.users[0] ?? "";
  } catch {
    return ""; // then the user must choose one
  }
}

begin();
