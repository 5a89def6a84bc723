// The page: which segments a user is in and for how long, changes of one at a time, and a report on its way to a file.

import { busy, resume, tryAll, want } from "./intentions.js";
import { KEPT, PASSING, ask, follow, keepToken, pause, sleep, token } from "./service.js";

const MEMBERSHIPS = "memberships { segment { slug } addedAt expiresAt source }";
const LOOKUP = `query ($id: ID!) { user(id: $id) { ${MEMBERSHIPS} } }`;
const CHANGES = `subscription ($id: ID!) { userChanged(id: $id) { resync user { ${MEMBERSHIPS} } } }`;
const TASK = `query ($id: ID!) {
  task(id: $id) { status rowsDone pollAfterMs error file { url urlExpiresAt rows bytes } } }`;
// Where changes are not told.
const POLL_MS = 5_000;
// A membership is over when the database says so, whose clock may be a little behind.
const ENDING_MS = 500;
// By so much this clock may be behind the database's.
const CLOCKS_MS = 5_000;
const DAY_MS = 86_400_000;

const $ = (selector) => document.querySelector(selector);
const inputs = (form) => $(form).elements;
let endpoint = localStorage.getItem(`${KEPT}endpoint`) ?? "http://127.0.0.1:8080/graphql";

let user = "", memberships = [], following = new AbortController(), ticking;
// How often the user was shown, who is being looked at again, and since when and how often for an end that has come.
let shows = 0, refreshing = null, notBefore = 0, asked = 0;

async function lookUp(id) {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  if (id !== user) memberships = [];
  user = id;
  try {
    const found = (await ask(endpoint, LOOKUP, { id })).user.memberships;
    if (signal.aborted) return;
    show(found);
    $("#found").hidden = false;
    keepUp(signal);
  } catch (problem) {
    if (signal.aborted) return;
    $("#found").hidden = true;
    say(problem.message, true);
  }
}

function show(found) {
  const slugs = new Set(found.map(({ segment }) => segment.slug));
  for (const { segment: { slug }, expiresAt } of memberships) {
    if (!slugs.has(slug) && Date.parse(expiresAt) <= Date.now() + CLOCKS_MS) say(`${slug} of user ${user} has ended.`);
  }
  memberships = found;
  shows++;
  showRows();
}

function showRows() {
  const changing = busy(user);
  $("#found caption").textContent = `User ${user} now`;
  $("#none").hidden = memberships.length > 0;
  const focused = document.activeElement?.dataset.slug;
  $("#found tbody").replaceChildren(...memberships.map(({ segment: { slug }, addedAt, source }) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = slug;
    row.append(head);
    row.insertCell().textContent = source === "ROLLOUT" ? "by its rollout" : new Date(addedAt).toLocaleString();
    row.insertCell();
    const remove = button(row.insertCell(), "Remove", () => toggle(slug, true));
    remove.setAttribute("aria-label", `Remove ${slug}`);
    remove.disabled = changing.has(slug);
    remove.dataset.slug = slug;
    return row;
  }));
  [...document.querySelectorAll("[data-slug]")].find(({ dataset }) => dataset.slug === focused)?.focus();
  const slug = inputs("#change").slug.value;
  $("#change button").disabled = changing.has(slug);
  $("#change button").textContent = has(slug) ? "Remove" : "Add";
  paint();
}

const has = (slug) => memberships.some(({ segment }) => segment.slug === slug);

/** Shows the time left, and again whenever that changes. */
function paint() {
  clearTimeout(ticking);
  const left = memberships.map(({ expiresAt }) => (expiresAt === null ? Infinity : Date.parse(expiresAt) - Date.now()));
  left.forEach((ms, index) => { $("#found tbody").rows[index].cells[2].textContent = remaining(ms); });
  const next = Math.min(...left.map((ms) => (ms > 0 ? ms % 1000 || 1000 : ENDING_MS)));
  if (!left.some(Number.isFinite)) return;
  ticking = setTimeout(() => {
    paint();
    askOfEnds();
  }, next);
}

/** Asks whether what is over by this clock is so by the database's: at once, and then ever more rarely. */
function askOfEnds() {
  if (!memberships.some(({ expiresAt }) => expiresAt !== null && Date.parse(expiresAt) <= Date.now())) {
    [asked, notBefore] = [0, 0];
  } else if (Date.now() >= notBefore) {
    notBefore = Date.now() + pause(asked++, {});
    refresh();
  }
}

function remaining(ms) {
  if (ms === Infinity) return "for good";
  if (ms <= 0) return "ended";
  const seconds = Math.ceil(ms / 1000), days = Math.floor(ms / DAY_MS);
  const clock = [Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, seconds % 60];
  return `${days ? `${days} d ` : ""}${clock.map((part) => String(part).padStart(2, "0")).join(":")}`;
}

/** Looks again, quietly: if there is no answer now, there will be a next time. */
async function refresh() {
  const { signal } = following, id = user, before = shows;
  if (!id || $("#found").hidden || refreshing === signal) return;
  refreshing = signal;
  try {
    const found = (await ask(endpoint, LOOKUP, { id })).user.memberships;
    // What was shown meanwhile is newer.
    if (!signal.aborted && shows === before) show(found);
  } catch { /* what is shown stays */ } finally {
    if (refreshing === signal) refreshing = null;
  }
}

/** Follows the user as long as the service tells its changes, and asks from time to time where it does not. */
async function keepUp(signal) {
  for (let tries = 0; !signal.aborted; tries++) {
    const told = ({ userChanged }) => { tries = 0; show(userChanged.user.memberships); };
    const offered = await follow(endpoint, CHANGES, { id: user }, signal, told).catch(() => true);
    while (!offered && !signal.aborted) {
      await sleep(POLL_MS, signal);
      if (!signal.aborted && !document.hidden) await refresh();
    }
    await sleep(pause(tries, {}), signal);
    if (!signal.aborted) await refresh();
  }
}

function toggle(slug, remove, days) {
  const input = { userId: user, ...(remove ? { remove: [slug] } : { add: [slug], ...(days && { ttlDays: days }) }) };
  return want(endpoint, "change", input, `${remove ? "Remove" : "Add"} ${slug} ${remove ? "from" : "to"} user ${user}`);
}

let reporting;

async function followReport() {
  const report = JSON.parse(localStorage.getItem(`${KEPT}report`));
  // A later call takes over.
  const mine = reporting = {}, current = () => reporting === mine;
  $("#download").replaceChildren();
  for (let tries = 0; report && current(); ) {
    let wait;
    try {
      const { task } = await ask(report.endpoint, TASK, { id: report.id });
      if (!current()) return;
      if (!task) return tell("The report is no longer there, or is somebody else's.");
      tell(`The report is ${task.status}${task.error ? `: ${task.error}` : "."} ${task.rowsDone} rows.`);
      if (task.file) return offer(report, task.file);
      if (task.pollAfterMs === null) return;
      [tries, wait] = [0, task.pollAfterMs];
    } catch (problem) {
      if (!PASSING.has(problem.code)) return tell(problem.message);
      wait = pause(tries++, problem);
      tell(`${problem.message} Asking again in ${(wait / 1000).toFixed(1)} s.`);
    }
    await sleep(wait);
  }
}

const tell = (sentence) => { $("#task").textContent = sentence; };

/** A link is good for some minutes; one that is used later is asked for anew. */
function offer(report, file) {
  // An endpoint may be anybody's, and this page has others' tokens.
  const url = new URL(file.url, report.endpoint);
  if (!["http:", "https:"].includes(url.protocol)) return tell("The report has no usable link.");
  const link = document.createElement("a");
  link.textContent = `Download it (CSV, ${file.rows} rows, ${file.bytes} bytes)`;
  link.href = url;
  link.download = "";
  link.addEventListener("click", async (event) => {
    if (Date.now() < Date.parse(file.urlExpiresAt) - 5_000) return;
    event.preventDefault();
    await followReport();
    $("#download a")?.click();
  });
  $("#download").replaceChildren(link);
}

function button(parent, text, pressed) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", pressed);
  parent.append(made);
  return made;
}

/** Tells what happened, newest first; of old messages some are kept. */
function say(sentence, bad = false) {
  const item = document.createElement("li"), time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString();
  item.append(time, sentence);
  item.classList.toggle("bad", bad);
  $("#messages").prepend(item);
  while ($("#messages").children.length > 50) $("#messages").lastChild.remove();
  return null;
}

// What the page shows of a mutation that is under way, and does once it is known.
const shown = {
  began(state) {
    const item = document.createElement("li");
    state.text = item.appendChild(document.createElement("span"));
    state.text.textContent = `${state.intention.title} …`;
    button(item, "Try now", () => state.again());
    button(item, "Give up", () => state.giveUp());
    $("#pending").append(item);
    showRows();
  },
  waits(state, sentence) { state.text.textContent = sentence; },
  refused: (sentence) => say(sentence, true),
  ended(state) {
    state.text.parentElement.remove();
    showRows();
    // A look that is under way may have come before it.
    shows++;
    refreshing = null;
    refresh();
  },
  done: {
    change({ added, updated, removed, replayed }, { title }) {
      const what = added.length || removed.length ? "done" : updated.length ? "its end has moved" : "it was so already";
      say(`${title}: ${what}${replayed ? " (an earlier attempt had done it)" : ""}.`);
    },
    report({ task }, { endpoint }) {
      localStorage.setItem(`${KEPT}report`, JSON.stringify({ id: task.id, endpoint }));
      followReport();
    },
  },
};

function submitted(form, then) {
  $(form).addEventListener("submit", (event) => { event.preventDefault(); then(inputs(form)); });
}

submitted("#connection", (given) => {
  if (!keepToken(given.endpoint.value, given.token.value)) {
    return say("That is no token: it has characters that tokens never have. It was not taken.", true);
  }
  endpoint = given.endpoint.value;
  localStorage.setItem(`${KEPT}endpoint`, endpoint);
  tryAll();
  if (user) lookUp(user);
  followReport();
});
// What was typed for one endpoint is not for the next.
inputs("#connection").endpoint.addEventListener("input", ({ target }) => {
  inputs("#connection").token.value = token(target.value);
});
submitted("#lookup", ({ user }) => lookUp(user.value));
submitted("#change", ({ slug, days }) => toggle(slug.value, has(slug.value), Number(days.value)));
inputs("#change").slug.addEventListener("input", showRows);
submitted("#report", ({ from }) => {
  const id = user || inputs("#lookup").user.value;
  if (!id) return say("Whose? Give a user id first.", true);
  const input = { from: `${from.value}T00:00:00Z`, userIds: [id] };
  return want(endpoint, "report", input, `Report of user ${id} from ${from.value}`);
});
addEventListener("online", tryAll);

inputs("#connection").endpoint.value = endpoint;
inputs("#connection").token.value = token(endpoint);
inputs("#report").from.value = new Date(Date.now() - 30 * DAY_MS).toISOString().slice(0, 10);
followReport();
resume(shown);
