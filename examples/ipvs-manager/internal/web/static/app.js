// The page follows two sources: /api/v1/watch (server-sent events) for the
// services, and a light poll of /api/v1/cluster and /api/v1/agents, which are
// not in the replicated state. The poll also notices a server that is gone,
// which an event stream alone may not for minutes.
import { edit } from "./editor.js";
import { keepUp } from "./history.js";
import { el, fill, moment, pill, since, table } from "./dom.js";

const pollEvery = 2000; // milliseconds
const pollSoon = 250; // after a change
const lostAfter = 2; // polls that failed in a row

const services = new Map(); // by name, as the API has them
let revision = 0;
let cluster = null;
let agents = null;
let serversBehind = []; // servers whose agents are not in the list
let checks = null; // the leader's checks as a whole; null where nobody answers for them
let noted = new Map(); // by service and backend: what its state does not show

// ---- services: the event stream

function follow() {
  const source = new EventSource("api/v1/watch");
  const take = (event) => {
    const update = JSON.parse(event.data);
    if (event.type === "snapshot") services.clear();
    for (const name of update.removed ?? []) services.delete(name);
    for (const s of update.services ?? []) services.set(s.name, s);
    revision = update.revision;
    showServices();
    showSummary();
    pollAfterChange();
  };
  source.addEventListener("snapshot", take);
  source.addEventListener("change", take);
  source.addEventListener("error", () => {
    // The browser itself tries again after a broken connection, and resumes
    // where it was; after an answer other than 200 it gives up.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 1000);
  });
}

// ---- servers and agents: the poll

let failed = 0;
let heard = Date.now();
let timer = null; // of the next poll; null while one is under way
let soon = false; // a change asked for it

async function poll() {
  timer = null;
  soon = false;
  try {
    // Only the leader checks: without one, and for a moment after an election,
    // nobody answers for the checks, and all else goes on.
    const asked = cluster?.leader ? get("api/v1/health").catch(() => null) : null;
    [cluster, agents, checks] = await Promise.all([get("api/v1/cluster"), get("api/v1/agents"), asked]);
    serversBehind = agents.unanswered ?? [];
    failed = 0;
    heard = Date.now();
    showServers();
    showAgents();
    note(checks?.noted ?? []);
    if (!document.hidden) keepUp(revision);
  } catch {
    failed++;
  }
  showLink();
  showBanners();
  showSummary();
  timer = setTimeout(poll, soon ? pollSoon : document.hidden ? pollEvery * 5 : pollEvery);
}

// note shows what checks have found beyond up and down: a certificate that ends
// soon, a check that the leader cannot run.
function note(list) {
  const now = new Map(list.map((n) => [`${n.service} ${n.backend}`, n]));
  const text = (map) => JSON.stringify([...map].map(([key, n]) => [key, n.text]));
  if (text(now) === text(noted)) return;
  const touched = new Set([...noted.values(), ...now.values()].map((n) => n.service));
  noted = now;
  for (const name of touched) cards.delete(name);
  showServices();
}

// A change reaches the agents within milliseconds: this shows that it has.
function pollAfterChange() {
  if (soon) return; // a stream of changes must not put it off
  soon = true;
  if (timer === null) return;
  clearTimeout(timer);
  timer = setTimeout(poll, pollSoon);
}

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(4000), cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

document.addEventListener("visibilitychange", () => document.hidden || showLink());

// ---- what is shown

const $ = (id) => document.getElementById(id);

function showLink() {
  const lost = failed >= lostAfter;
  document.body.classList.toggle("stale", lost);
  const link = $("link");
  let kind = "good", text = "live";
  if (lost) {
    kind = "bad";
    text = `connection lost ${since(Date.now() - heard)} ago`;
  } else if (!cluster) {
    kind = "wait";
    text = "connecting…";
  } else if (!cluster.leader) {
    kind = "warn";
    text = "no leader";
  }
  link.className = `pill ${kind}`;
  if (link.textContent !== text) link.textContent = text;
}

function showBanners() {
  const banners = [];
  const add = (kind, title, text) => banners.push(el("p", { class: `banner ${kind}` }, el("strong", {}, title), el("span", {}, text)));
  if (failed >= lostAfter) {
    add("bad", "This server does not answer.", "What you see is its last account. Traffic through the directors does not depend on it.");
  } else if (cluster) {
    const forming = cluster.formation;
    if (!cluster.cluster_id && forming) {
      add("warn", "The cluster is being formed.", forming);
    } else if (!cluster.leader) {
      add("bad", "There is no leader.", "Most servers must be reachable to change anything. Directors go on with what they have.");
    }
    const here = cluster.server;
    if (here.simulated) {
      add("warn", "The data plane is simulated.", here.notice || "No kernel is programmed: services are kept in memory alone, and no packet is forwarded.");
    } else if (agents?.agents.some((a) => a.connected && a.applied?.simulated)) {
      add("warn", "Some agents are simulated.", "They keep services in memory alone, and forward no packet.");
    }
    for (const a of agents?.agents ?? []) {
      if (!a.held) continue;
      banners.push(el("p", { class: "banner warn" },
        el("strong", {}, `${a.name} holds a new state back.`), el("span", {}, `${a.held} Its traffic goes on as before.`),
        el("button", { type: "button", onclick: () => release(a) }, "Release…")));
    }
    if (checks?.hold.active) {
      add("bad", "A mass failure is held back.", `${checks.hold.why}. ${checks.held} backends that fail stay in service until ${new Date(checks.hold.until).toLocaleTimeString()} at the latest.`);
    }
    if (here.insecure) {
      add("bad", "Insecure: no encryption and no login.", "The server was started with --insecure. Whoever reaches its ports controls the load balancer.");
    }
  }
  fill($("banners"), banners);
}

// release lets an agent accept what it holds back, for a reason that is kept.
async function release(agent) {
  const reason = prompt(`${agent.name} holds a state back: ${agent.held}\n\nIf that state is right, why? The reason is kept with your name.`);
  if (!reason?.trim()) return;
  try {
    const answer = await fetch(`api/v1/agents/${encodeURIComponent(agent.name)}/release`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ reason }), signal: AbortSignal.timeout(10000),
    });
    if (!answer.ok) alert((await answer.json()).detail);
  } catch (err) {
    alert(`Whether ${agent.name} was released is not known: ${err.message}`);
  }
  pollAfterChange();
}

function showSummary() {
  let backends = 0, serving = 0, down = 0;
  for (const s of services.values()) {
    for (const b of s.backends) {
      backends++;
      if (b.effective_weight > 0) serving++;
      if (b.health?.state === "down") down++;
    }
  }
  const list = agents?.agents ?? [];
  const here = list.filter((a) => a.connected);
  const converged = here.filter((a) => state(a).kind === "good").length;
  const members = cluster?.members ?? [];
  const heardOf = members.filter((m) => m.role === "leader" || m.progress?.active).length;
  const tiles = [
    ["Services", services.size, `revision ${revision}`],
    ["Backends in service", `${serving} / ${backends}`, down ? `${down} down` : "none down", down > 0],
    ["Agents converged", `${converged} / ${here.length}`, list.length > here.length ? `${list.length - here.length} gone` : here.length > 0 ? "of those connected" : "none connected", list.length > here.length],
    ["Servers reachable", `${heardOf} / ${members.length}`, ...serversNote(members.length, heardOf)],
  ];
  fill($("totals"), tiles.map(([name, number, note, alert]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, String(number), el("small", { class: alert ? "alert" : "" }, note)))));
  if (!cluster) return;
  $("node").textContent = `server ${cluster.server.name}`;
  $("cluster").textContent = cluster.cluster_id ? `cluster ${cluster.cluster_id}` : "";
  $("revision").textContent = cluster.leader ? `leader ${cluster.leader}, term ${cluster.term}` : "";
}

function serversNote(all, heardOf) {
  if (all === 0) return ["not formed yet", false];
  if (!cluster.leader) return ["no leader", true];
  return heardOf < all ? [`${all - heardOf} silent`, true] : [`leader ${cluster.leader}`, false];
}

const cards = new Map(); // name -> {service, text, node}: a card is made anew only when its service changed

function showServices() {
  const wanted = $("filter").value.trim().toLowerCase();
  const list = $("service-list");
  const names = [...services.keys()].sort();
  const shown = [];
  for (const name of names) {
    const s = services.get(name);
    let card = cards.get(name);
    if (card?.service !== s) {
      card = { service: s, text: JSON.stringify(s).toLowerCase(), node: serviceCard(s) };
      cards.set(name, card);
    }
    if (card.text.includes(wanted)) shown.push(card.node);
  }
  for (const name of cards.keys()) if (!services.has(name)) cards.delete(name);
  if (names.length === 0) {
    shown.push(el("div", { class: "empty" }, "There are no services yet. Add one here, or from a shell:", el("pre", {},
      `curl -X PUT -H 'Content-Type: application/json' ${location.origin}/api/v1/services/web -d '{
  "vip": "192.0.2.10", "port": 80,
  "backends": [{"address": "10.1.0.1", "port": 8080}, {"address": "10.1.0.2", "port": 8080}]
}'`)));
  } else if (shown.length === 0) {
    shown.push(el("p", { class: "empty" }, `No service has “${wanted}” in it.`));
  }
  fill(list, shown);
}

function serviceCard(s) {
  const [kind, text] = serviceState(s);
  const chips = [["scheduler", [s.scheduler, ...(s.scheduler_flags ?? [])].join(" ")]];
  chips.push(["forwarding", [s.forwarding, s.forwarding === "tunnel" && s.tunnel?.type].filter(Boolean).join(" ")]);
  if (s.persistence) chips.push(["persistence", [s.persistence.timeout, s.persistence.prefix && `/${s.persistence.prefix}`, s.persistence.engine].filter(Boolean).join(" ")]);
  if (s.one_packet) chips.push(["one packet", "yes"]);
  if (s.snat !== "local") chips.push(["snat", s.snat]);
  if (s.health_check) chips.push(["check", checkText(s.health_check)]);
  if (s.min_healthy) chips.push(["healthy at least", s.min_healthy]);
  if (s.fail_open) chips.push(["otherwise", "all are used"]);
  for (const [k, v] of Object.entries(s.agents ?? {})) chips.push(["agents", `${k}=${v}`]);
  for (const [k, v] of Object.entries(s.labels ?? {})) chips.push(["label", `${k}=${v}`]);
  return el("article", { class: "card" },
    el("header", {},
      el("h3", {}, s.name),
      el("span", { class: "mono" }, listener(s)),
      el("span", { class: "grow" }),
      pill(kind, text),
      el("button", { type: "button", "aria-label": `Edit ${s.name}`, onclick: () => edit(s.name) }, "Edit")),
    el("ul", { class: "chips" }, ...chips.map(([k, v]) => el("li", {}, `${k} `, el("b", {}, String(v))))),
    s.notes && el("p", { class: "notes" }, s.notes),
    (s.backends.length > 0 || s.sorry_server) && table("backends", `Backends of ${s.name}`, ["Backend", "State", "Weight", "Since"], backendRows(s)));
}

function serviceState(s) {
  const serving = s.backends.filter((b) => b.effective_weight > 0).length;
  if (s.sorry_server_in_charge) return ["bad", "sorry server in charge"];
  if (s.backends.length === 0) return ["bad", "no backends"];
  return [serving === 0 ? "bad" : serving < s.backends.length ? "warn" : "good", `${serving} of ${s.backends.length} in service`];
}

function backendRows(s) {
  const most = Math.max(1, ...s.backends.map((b) => Math.max(b.effective_weight, b.weight ?? 100)));
  const rows = s.backends.map((b) => {
    const configured = b.weight ?? 100;
    const [kind, text] = backendState(b);
    return [
      el("span", { class: "mono" }, hostport(b.address, b.port ?? s.port ?? 0)),
      [
        pill(kind, text),
        b.drain_until && el("small", {}, "until ", moment(new Date(b.drain_until))),
        b.health?.message && (b.health.state !== "up" || b.health.held) && el("small", {}, b.health.message),
        ...notedOf(s, b),
        b.notes && el("small", {}, b.notes),
      ],
      el("span", { class: "weight num" }, track(b.effective_weight / most), el("span", {},
        String(b.effective_weight), b.effective_weight !== configured && el("span", { class: "dim" }, ` of ${configured}`))),
      b.health?.since ? moment(new Date(b.health.since)) : el("span", { class: "dim" }, b.health ? "–" : "no check"),
    ];
  });
  const sorry = s.sorry_server;
  if (sorry) {
    rows.push([
      el("span", { class: "mono" }, hostport(sorry.address, sorry.port ?? s.port ?? 0)),
      s.sorry_server_in_charge ? pill("warn", "sorry server in charge") : pill("off", "sorry server standing by"),
      el("span", { class: "dim" }, "–"),
      el("span", { class: "dim" }, "no check"),
    ]);
  }
  return rows;
}

function notedOf(s, b) {
  const address = b.address.includes(":") ? `[${b.address}]` : b.address;
  const n = noted.get(`${s.name} ${address}:${b.port ?? s.port ?? 0}`);
  return n ? [el("small", { class: n.class === "ok" ? "alert" : "" }, n.class === "ok" ? n.text : `not known: ${n.text}`)] : [];
}

function backendState(b) {
  switch (b.reason) {
    case "healthy": return ["good", "healthy"];
    case "in service": return ["good", "in service"];
    case "unhealthy": return ["bad", "unhealthy"];
    case "draining": return ["warn", "draining"];
    case "not yet up":
    case "assumed up":
    case "held":
    case "fail-open": return ["warn", b.reason];
    case "too few healthy": return ["bad", b.reason];
    default: return ["off", b.reason];
  }
}

function checkText(c) {
  if (c.use) return c.use;
  const what = checkKind(c);
  return c.interval ? `${what} every ${c.interval}` : what;
}

function checkKind(c) {
  if (c.checks) return `${c.type} of ${c.checks.map(checkKind).join(", ")}`;
  const detail = c.url ?? c.path ?? c.dns?.name ?? c.exec?.program ?? c.grpc_service;
  return [c.type, c.mode, detail, c.tls && !["tls", "https"].includes(c.type) && "by TLS"].filter(Boolean).join(" ");
}

function listener(s) {
  if (s.fwmark) return `fwmark ${s.fwmark} ${s.family}`;
  return `${s.protocol} ${hostport(s.vip, s.port)}`;
}

function hostport(address, port) {
  if (!port) return address;
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

// track draws a share between 0 and 1; the number beside it says it in text.
function track(share) {
  const svg = (name, attrs) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [k, v] of Object.entries(attrs)) node.setAttribute(k, v);
    return node;
  };
  const box = svg("svg", { class: "track", viewBox: "0 0 80 7", preserveAspectRatio: "none", "aria-hidden": "true" });
  box.append(svg("rect", { class: "rail", width: 80, height: 7, rx: 3.5 }));
  if (share > 0) box.append(svg("rect", { class: "fill", width: Math.max(4, 80 * share), height: 7, rx: 3.5 }));
  return box;
}

// ---- agents and servers

function state(a) {
  const applied = a.applied ?? {};
  if (!a.connected) return { kind: "off", text: "not connected" };
  if (a.held) return { kind: "bad", text: "holds back" };
  if (a.rejected) return { kind: "bad", text: "refused" };
  if (applied.failures?.length || applied.collisions?.length) return { kind: "bad", text: "has failures" };
  if (a.applied_revision < a.sent_revision || !applied.converged) return { kind: "wait", text: "working" };
  return { kind: "good", text: "converged" };
}

function showAgents() {
  const list = agents.agents;
  const notes = serversBehind.map((s) => el("p", { class: "banner warn" }, el("span", {}, `Server ${s.name} did not say which agents it has: ${s.reason}`)));
  if (list.length === 0) {
    fill($("agent-list"), [...notes, el("div", { class: "empty" }, "No agent is known. On a director:", el("pre", {},
      `ipvs-manager --server_type agent --grpc_address ${cluster.server.grpc_address}${cluster.server.insecure ? " --insecure" : ""}`))]);
    return;
  }
  const rows = list.map((a) => {
    const { kind, text } = state(a);
    const applied = a.applied ?? {};
    const labels = Object.entries(a.labels ?? {}).map(([k, v]) => `${k}=${v}`).join(", ");
    const faults = [a.held, a.rejected, a.problem].filter(Boolean).map((t) => el("li", {}, el("span", {}, t)));
    for (const f of applied.failures ?? []) faults.push(el("li", {}, `${f.object}: ${f.op}: `, el("span", {}, f.reason)));
    for (const c of applied.collisions ?? []) faults.push(el("li", {}, "not ours, left alone: ", el("span", {}, c)));
    return [
      [a.name, el("small", {}, [a.address, labels].filter(Boolean).join(" · "))],
      [pill(kind, text), faults.length > 0 && el("ul", { class: "faults" }, ...faults)],
      [el("span", { class: "num" }, `${a.applied_revision} of ${a.sent_revision}`), applied.draining > 0 && el("small", {}, `${applied.draining} draining`)],
      applied.converged || applied.revision ? (applied.simulated ? pill("warn", "simulated") : "real") : el("span", { class: "dim" }, "–"),
      [ago(a.last_heard, agents.at), el("small", {}, `by ${a.server}`)],
    ];
  });
  fill($("agent-list"), [...notes, el("div", { class: "panel" }, table("agents", "Agents", ["Agent", "State", "Revision applied", "Kernel", "Last heard"], rows))]);
}

function showServers() {
  const members = cluster.members;
  if (members.length === 0) {
    fill($("server-list"), [el("p", { class: "empty" }, "This server is in no cluster yet.")]);
    return;
  }
  const leader = members.find((m) => m.role === "leader");
  const last = leader?.progress?.match ?? 0;
  const rows = members.map((m) => {
    const p = m.progress;
    const here = m.name === cluster.server.name;
    const silent = m.role !== "leader" && p && !p.active;
    return [
      [m.name, here && el("span", { class: "dim" }, " · this one"), el("small", {}, `http ${m.http_addr} · raft ${m.raft_addr}`)],
      pill(m.role === "leader" ? "good" : silent ? "bad" : m.role === "learner" ? "wait" : "good", silent ? `${m.role}, silent` : m.role),
      p ? el("span", { class: "weight num" }, track(last ? p.match / last : 0), el("span", {}, String(p.match))) : el("span", { class: "dim" }, "–"),
      m.role === "leader" ? el("span", { class: "dim" }, "leads") : p?.last_heard ? ago(p.last_heard, cluster.at) : el("span", { class: "dim" }, "–"),
    ];
  });
  fill($("server-list"), [el("div", { class: "panel" }, table("servers", "Servers", ["Server", "Role", "Log position", "Last heard"], rows))]);
}

// ago compares two times of the same server's clock.
function ago(time, at) {
  if (!time || time.startsWith("0001")) return el("span", { class: "dim" }, "never");
  const ms = Math.max(0, new Date(at) - new Date(time));
  return el("time", { datetime: time, title: new Date(time).toLocaleString(), class: "num" }, `${since(ms)} ago`);
}

$("filter").addEventListener("input", showServices);
$("add").addEventListener("click", () => edit(null));
setInterval(() => failed >= lostAfter && showLink(), 1000);
showServices();
showSummary();
follow();
poll();
