// Elements are made by hand and text is only ever set as text, so nothing that
// the API returns can become markup.

export function el(tag, attrs, ...children) {
  const node = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (v !== "") node.setAttribute(k, v);
  }
  node.append(...children.flat().filter((c) => c !== false && c !== null && c !== undefined && c !== 0 && c !== ""));
  return node;
}

// fill makes children the only children of parent. What is there already, or
// is equal to what is there, stays untouched, and with it a selection or a focus
// inside it, and its layout.
export function fill(parent, children) {
  const wanted = new Set(children);
  let at = parent.firstChild;
  for (const child of children) {
    let kept = false;
    while (at && !wanted.has(at) && !kept) {
      const old = at;
      at = at.nextSibling;
      kept = old.isEqualNode(child);
      if (!kept) old.remove();
    }
    if (kept) continue;
    if (at === child) at = at.nextSibling;
    else parent.insertBefore(child, at);
  }
  while (at) {
    const old = at;
    at = at.nextSibling;
    old.remove();
  }
}

export function pill(kind, text) {
  return el("span", { class: `pill ${kind}` }, text);
}

// table's rows are lists of cells; the first names its row. On a narrow screen
// a row becomes a block, and each cell shows its column's name.
export function table(kind, caption, columns, rows) {
  return el("table", { class: kind },
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, ...columns.map((c) => el("th", { scope: "col" }, c)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, i) => {
      const content = Array.isArray(cell) ? cell : [cell];
      return i === 0 ? el("th", { scope: "row" }, ...content) : el("td", { "data-label": columns[i] }, el("div", {}, ...content));
    })))));
}

export function since(ms) {
  const s = Math.round(ms / 1000);
  if (s < 1) return "less than 1 s";
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

// moment shows a time of today as such, and an older one with its date.
export function moment(at) {
  const today = at.toDateString() === new Date().toDateString();
  return el("time", { datetime: at.toISOString(), title: at.toLocaleString(), class: "num" },
    today ? at.toLocaleTimeString() : at.toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
}
