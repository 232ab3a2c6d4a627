// The editor writes one service, as the API takes it: JSON or YAML. The
// revision in the text makes the write conditional, so that two people do not
// overwrite each other.
import { el } from "./dom.js";

const $ = (id) => document.getElementById(id);
const dialog = $("editor");
let editing = null; // the service, or null for a new one

const example = `name: web
vip: 192.0.2.10
port: 80
scheduler: wrr
health_check: {type: http, path: /healthz}
backends:
- {address: 10.1.0.1, port: 8080, weight: 100}
- {address: 10.1.0.2, port: 8080, weight: 50}
`;

// edit opens the editor: for the service of this name as it is now, or for a
// new one.
export async function edit(name) {
  editing = name ? { name } : null;
  $("editor-title").textContent = name ? `Service ${name}` : "New service";
  $("editor-hint").textContent = name
    ? "JSON or YAML, as the API takes it. It is saved only if no one else has changed the service meanwhile."
    : "JSON or YAML, as the API takes it.";
  $("editor-text").value = name ? "" : example;
  $("editor-delete").hidden = !name;
  show([]);
  disarm();
  disable(false);
  dialog.showModal();
  if (name) await load(name);
  $("editor-text").focus();
  $("editor-text").setSelectionRange(0, 0);
}

// load shows what was written, without what the state makes of it.
async function load(name) {
  disable(true);
  try {
    const answer = await fetch(`${path(name)}?view=config`, { signal: AbortSignal.timeout(10000), cache: "no-store" });
    const body = await answer.json();
    if (editing?.name !== name || !dialog.open) return; // closed meanwhile
    if (!answer.ok) {
      show([body.detail ?? body.title]);
      return;
    }
    editing = body;
    $("editor-text").value = JSON.stringify(body, null, 2);
    disable(false);
  } catch (error) {
    show([`The server did not answer: ${error.message}.`]);
  }
}

const path = (name) => `api/v1/services/${encodeURIComponent(name)}`;

function disable(is) {
  for (const id of ["editor-text", "editor-save", "editor-delete"]) $(id).disabled = is;
}

async function send(method, name, body, headers) {
  disable(true);
  try {
    const answer = await fetch(path(name), { method, body, headers, signal: AbortSignal.timeout(10000) });
    if (answer.ok) {
      dialog.close();
      return;
    }
    const problem = await answer.json();
    show([problem.detail ?? problem.title], problem.faults ?? []);
  } catch (error) {
    show([`The server did not answer: ${error.message}. Whether the change was made is not known; look before you try again.`]);
  } finally {
    disable(false);
  }
}

function show(lines, faults = []) {
  $("editor-faults").replaceChildren(
    ...lines.map((l) => el("div", {}, l)),
    ...(faults.length ? [el("ul", {}, ...faults.map((f) => el("li", {}, f.path && el("code", {}, f.path), " ",
      el("span", {}, [f.reason, f.found && !f.reason.includes(f.found) && `found ${f.found}`, f.allowed && `allowed: ${f.allowed}`].filter(Boolean).join("; ")))))] : []));
}

$("editor-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("editor-text").value;
  const json = text.trimStart().startsWith("{");
  const name = editing?.name ?? nameIn(text, json);
  if (!name) {
    show(["The service needs a name."]);
    return;
  }
  const headers = { "Content-Type": json ? "application/json" : "application/yaml" };
  // A new service must not replace one that is there.
  if (!editing) headers["If-None-Match"] = "*";
  send("PUT", name, text, headers);
});

// nameIn finds the name, which the path of the request needs. Text that cannot
// be read is sent all the same, since the server says best what is wrong with it.
function nameIn(text, json) {
  if (!json) return text.match(/^name:\s*["']?([^"'\s#]*)/m)?.[1];
  try {
    return JSON.parse(text).name;
  } catch {
    return text.match(/"name"\s*:\s*"([^"]*)"/)?.[1] ?? "unreadable";
  }
}

let armed = null;
$("editor-delete").addEventListener("click", () => {
  const button = $("editor-delete");
  if (!armed) {
    button.textContent = "Delete: press again";
    armed = setTimeout(disarm, 4000);
    return;
  }
  disarm();
  send("DELETE", editing.name, undefined, { "If-Match": `"${editing.revision}"` });
});

function disarm() {
  clearTimeout(armed);
  armed = null;
  $("editor-delete").textContent = "Delete";
}

$("editor-cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  if (dialog.open) return; // the event comes later than the closing; a service was opened in between
  disarm();
  disable(false);
});
