// The list of clips: a table that can be sorted, with pictures, and its download as CSV.

import { h, signed } from "./dom.js";
import { percentileOf, REWARDS } from "./meaning.js";

const COLUMNS = [
  { name: "name", title: "Clip", of: (clip) => clip.name.toLowerCase() },
  { name: "state", title: "State", of: (clip) => clip.phase },
  ...REWARDS.map(({ name, title }) => ({ name, title, number: true, of: (clip) => clip.reward?.[name] ?? null })),
  {
    name: "percentile",
    title: "Percentile",
    number: true,
    of: (clip) => (clip.reward ? percentileOf(clip.reward, "combined") : null),
  },
];

const WORDS = {
  waiting: "waiting",
  uploading: "uploading",
  queued: "in the queue",
  running: "scoring",
  ok: "scored",
  error: "no reward",
  cancelled: "cancelled",
};

/** What a clip does now, in a word or two. */
export const stateOf = (clip) =>
  clip.phase === "uploading" ? `uploading ${Math.floor(100 * clip.share)} %` : WORDS[clip.phase];

/** `actions`: linkTo(clip), open(clip), cancel(clip), remove(clip), compare(a, b). Returns {element, update(clip), list()}. */
export function clipTable(clips, actions) {
  const rows = new Map();
  const chosen = new Set();
  let sorting = { name: null, down: false };
  const body = h("tbody");
  const compare = h("button", { type: "button", disabled: true, onclick: () => actions.compare(...chosen) }, "Compare two");
  const count = h("h2", {});
  const heads = COLUMNS.map((column) => {
    const sort = () => {
      sorting = { name: column.name, down: sorting.name === column.name ? !sorting.down : Boolean(column.number) };
      order();
    };
    return h("th", { scope: "col", class: `${column.name}${column.number ? " number" : ""}` }, h("button", { type: "button", onclick: sort }, column.title));
  });
  const hidden = (text) => h("th", { scope: "col" }, h("span", { class: "unseen" }, text));
  const table = h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of clips" },
    h("table", {}, h("thead", {}, h("tr", {}, hidden("Choose to compare"), hidden("Picture"), ...heads, hidden("Actions"))), body),
  );
  const csv = h("button", { type: "button", onclick: () => actions.csv() }, "CSV");
  const element = h("div", {}, h("div", { class: "row head" }, count, h("span", { class: "spring" }), compare, csv), table);

  function order() {
    heads.forEach((head, at) => {
      const mine = COLUMNS[at].name === sorting.name;
      if (mine) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const sorted = sortedClips(clips.list, COLUMNS.find(({ name }) => name === sorting.name), sorting.down);
    const wanted = sorted.map((clip) => rows.get(clip).element);
    if (wanted.some((row, at) => body.children[at] !== row) || body.children.length !== wanted.length) body.replaceChildren(...wanted);
  }
  function list() {
    for (const clip of clips.list) if (!rows.has(clip)) rows.set(clip, rowOf(clip, chosen, choose, actions));
    for (const clip of [...rows.keys()].filter((one) => !clips.list.includes(one))) {
      rows.delete(clip);
      chosen.delete(clip);
    }
    count.textContent = clips.list.length === 1 ? "1 clip" : `${clips.list.length} clips`;
    choose();
    order();
  }
  function choose() {
    compare.disabled = chosen.size !== 2;
    for (const { pick } of rows.values()) pick();
  }
  function update(clip) {
    rows.get(clip)?.show();
    if (sorting.name) order();
  }
  return { element, update, list };
}

/** Clips in the order of a column. Those without a value come last, whichever way it goes. */
export function sortedClips(list, column, down) {
  if (!column) return list;
  const sign = down ? -1 : 1;
  return [...list].sort((one, other) => {
    const [a, b] = [column.of(one), column.of(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return a < b ? -sign : a > b ? sign : 0;
  });
}

function rowOf(clip, chosen, choose, actions) {
  const box = h("input", { type: "checkbox", "aria-label": `Compare ${clip.name}` });
  box.addEventListener("change", () => (box.checked ? chosen.add(clip) : chosen.delete(clip), choose()));
  const thumb = h("td", { class: "thumb" }, h("span", { "aria-hidden": "true" }, clip.name.match(/\.(\w{1,11})$/)?.[1] ?? ""));
  const link = h("a", { href: "#", onclick: (event) => (event.preventDefault(), actions.open(clip)) }, clip.name);
  const state = h("td", { class: "state" });
  const cells = COLUMNS.slice(2).map(({ name }) => h("td", { class: `number ${name}` }));
  const end = h("button", { type: "button", class: "plain", onclick: () => (clip.ended ? actions.remove(clip) : actions.cancel(clip)) });
  const element = h("tr", {}, h("td", { class: "choose" }, box), thumb, h("th", { scope: "row", class: "name" }, link), state, ...cells, h("td", { class: "end" }, end));

  function pick() {
    box.checked = chosen.has(clip);
    box.disabled = clip.phase !== "ok" || (chosen.size === 2 && !chosen.has(clip));
  }
  function show() {
    link.setAttribute("href", actions.linkTo(clip));
    if (clip.thumb && thumb.firstChild?.tagName !== "IMG") thumb.replaceChildren(h("img", { src: clip.thumb, alt: "" }));
    element.className = clip.phase;
    state.replaceChildren(stateOf(clip));
    if (clip.phase === "uploading") state.append(h("progress", { max: 1, value: clip.share, "aria-label": `Upload of ${clip.name}` }));
    if (clip.error) state.append(h("span", { class: "quiet error" }, clip.error.message));
    if (clip.note) state.append(h("span", { class: "quiet" }, clip.note));
    if (clip.reward?.clipped) state.append(h("span", { class: "flag" }, "clipped"));
    COLUMNS.slice(2).forEach((column, at) => (cells[at].textContent = shown(column, column.of(clip))));
    end.textContent = clip.ended ? "Remove" : "Cancel";
    end.setAttribute("aria-label", `${end.textContent} ${clip.name}`);
    pick();
  }
  show();
  return { element, show, pick };
}

function shown({ name }, value) {
  if (value === null) return "";
  return name === "percentile" ? value.toFixed(0) : signed(value);
}

/** The list as CSV. Text that a spreadsheet could take for a formula gets an apostrophe. */
export function csvOf(list) {
  const names = ["name", "id", "outcome", ...REWARDS.map(({ name }) => name), "clipped"];
  const standing = [...REWARDS.map(({ name }) => `${name}_percentile`), "nearest", "num_windows", "discriminator_version"];
  const lines = list.map((clip) => {
    const { reward, provenance, error } = clip;
    const rewards = [...REWARDS.map(({ name }) => reward?.[name]), reward?.clipped];
    const stands = [...REWARDS.map(({ name }) => reward && percentileOf(reward, name)), reward?.standing?.nearest];
    const more = [reward?.windows.length, provenance?.discriminator_version, error?.code, error?.message];
    return [clip.name, clip.id, clip.outcome ?? clip.phase, ...rewards, ...stands, ...more];
  });
  const head = [...names, ...standing, "error_code", "error"];
  return [head, ...lines].map((line) => line.map(field).join(",") + "\r\n").join("");
}

function field(value) {
  if (typeof value !== "string") return value ?? "";
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
