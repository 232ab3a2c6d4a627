// The history says who changed what, when and why. A revision opened shows its
// diff, and what going back to it would change; what was shown then is what
// happens, or nothing does.
import { el, fill, moment, table } from "./dom.js";

const page = 10; // revisions shown at first, and more at a time

const $ = (id) => document.getElementById(id);
const dialog = $("past");

let shown = -1; // the state's revision that the list shows; -1: none
let wanted = 0;
let count = page;
let loading = false;

// keepUp shows the history of a revision of the state, once whatever is under
// way has ended.
export async function keepUp(revision) {
  wanted = revision;
  if (loading || shown === wanted) return;
  loading = true;
  try {
    while (shown !== wanted) {
      const aim = wanted;
      show(await get(`api/v1/history?stale=true&limit=${count}`));
      shown = aim;
    }
  } catch {
    // The page says that the server does not answer, and the next change or
    // poll tries again.
  } finally {
    loading = false;
  }
}

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(10000), cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail ?? body.title);
  return body;
}

function show({ history, next }) {
  if (history.length === 0) {
    fill($("history-list"), [el("p", { class: "empty" }, "Nothing was changed yet.")]);
    return;
  }
  const rows = history.map((e) => [
    el("button", { type: "button", "aria-label": `Revision ${e.revision}`, onclick: () => open(e.revision) }, String(e.revision)),
    moment(new Date(e.at)),
    e.author || el("span", { class: "dim" }, "–"),
    [objects(e.objects), e.reason && el("small", {}, e.reason)],
  ]);
  fill($("history-list"), [
    el("div", { class: "panel" }, table("history", "History", ["Revision", "When", "Who", "What and why"], rows)),
    next ? el("p", {}, el("button", { type: "button", onclick: older }, "Show older")) : null,
  ].filter(Boolean));
}

function older() {
  count = Math.min(count + page, 1000);
  shown = -1;
  keepUp(wanted);
}

const named = 3; // objects of a revision; a file that is applied may change thousands

function objects(list) {
  const texts = list.slice(0, named).map((o) => `${o.kind} ${o.name} ${o.outcome}`);
  if (list.length > named) texts.push(`${list.length - named} more`);
  return texts.join(", ");
}

// ---- one revision

let past = null; // {revision, now}: what is shown, and the configuration's revision that it is compared with

async function open(revision) {
  const mine = { revision };
  past = mine;
  disarm();
  $("past-title").textContent = `Revision ${revision}`;
  $("past-hint").textContent = "";
  $("past-reason").value = "";
  $("past-back").disabled = true;
  fill($("past-did"), []);
  fill($("past-would"), []);
  say("");
  dialog.showModal();
  try {
    const [e, newest] = await Promise.all([get(`api/v1/history/${revision}`), get("api/v1/history?limit=1")]);
    const now = newest.history[0].revision;
    const back = now === revision ? null : await get(`api/v1/diff?from=${now}&to=${revision}`);
    if (past !== mine) return; // closed meanwhile
    mine.now = now;
    $("past-hint").textContent = [`by ${e.author || "nobody named"}`, new Date(e.at).toLocaleString(), e.reason].filter(Boolean).join(" · ");
    fill($("past-did"), [el("h3", {}, "What it changed"), diff(e.diff)]);
    fill($("past-would"), [
      el("h3", {}, "What going back to it would change"),
      back ? diff(back.diff) : el("p", { class: "dim" }, "Nothing: this is the configuration now."),
    ]);
    $("past-back").disabled = !back || back.diff.length === 0;
  } catch (error) {
    if (past === mine) say(error.message);
  }
}

function diff(list) {
  if (list.length === 0) return el("p", { class: "dim" }, "Nothing.");
  return el("ul", { class: "diff" }, ...list.map((o) => el("li", {},
    el("b", {}, `${o.action} ${o.kind} ${o.name}`),
    o.fields && el("ul", {}, ...o.fields.map((f) => el("li", {}, el("code", {}, f.path), ": ", value(f.from), " → ", value(f.to)))))));
}

function value(v) {
  return v === undefined ? el("span", { class: "dim" }, "nothing") : el("code", {}, JSON.stringify(v));
}

function say(text) {
  $("past-faults").textContent = text;
}

async function back() {
  const { revision, now } = past;
  $("past-back").disabled = true;
  try {
    const answer = await fetch("api/v1/rollback", {
      method: "POST",
      headers: { "Content-Type": "application/json", "If-Match": `"${now}"` },
      body: JSON.stringify({ revision, reason: $("past-reason").value.trim() }),
      signal: AbortSignal.timeout(10000),
    });
    if (answer.ok) {
      dialog.close();
      return;
    }
    const problem = await answer.json();
    say([problem.detail ?? problem.title, ...(problem.faults ?? []).map((f) => [f.object, f.path, f.reason].filter(Boolean).join(" "))].join("; "));
  } catch (error) {
    say(`The server did not answer: ${error.message}. Whether the change was made is not known; look before you try again.`);
  }
}

let armed = null;
$("past-back").addEventListener("click", () => {
  if (!armed) {
    $("past-back").textContent = "Go back: press again";
    armed = setTimeout(disarm, 4000);
    return;
  }
  disarm();
  back();
});

function disarm() {
  clearTimeout(armed);
  armed = null;
  $("past-back").textContent = "Go back to this revision";
}

$("past-cancel").addEventListener("click", () => dialog.close());
$("past-form").addEventListener("submit", (event) => event.preventDefault()); // Enter in the reason
dialog.addEventListener("close", () => {
  if (dialog.open) return; // the event comes later than the closing; a revision was opened in between
  disarm();
  past = null;
});
