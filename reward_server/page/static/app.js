// Starts the page: takes clips in, keeps the address in step with what is shown, and shows one view at a time.
//
// The address holds the jobs: #jobs=ID,ID&open=ID or #jobs=ID,ID&compare=ID,ID. It is never sent to the server.

import { apiKey, copyOf, model, setApiKey } from "./api.js";
import { Clips } from "./clips.js";
import { compareView } from "./compare.js";
import { announce, download, find, h } from "./dom.js";
import { thumbOf } from "./picture.js";
import { scoreView } from "./score.js";
import { clipTable, csvOf } from "./table.js";

const ADDRESS_MS = 300;
const AGAIN_MS = 3000; // until a server that was not ready is asked again

const clips = new Clips();
const table = clipTable(clips, { linkTo, open, cancel: (clip) => clips.cancel(clip), remove, compare, csv });
let view = null;
let viewed = []; // the clips of the view: none, one, or two

// --- the address ---

function hashOf(shownClips) {
  const ids = clips.list.map(({ id }) => id).filter(Boolean);
  const shownIds = shownClips.map(({ id }) => id).filter(Boolean);
  const parts = [ids.length && `jobs=${ids.join(",")}`];
  if (shownIds.length === shownClips.length && shownIds.length) parts.push(`${shownIds.length === 2 ? "compare" : "open"}=${shownIds.join(",")}`);
  return `#${parts.filter(Boolean).join("&")}`;
}

function linkTo(clip) {
  return clip.id ? hashOf([clip]) : "#";
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const list = (name) => (given.get(name) ?? "").split(",").filter(Boolean);
  const wanted = [...list("compare"), ...list("open")];
  clips.restore([...new Set([...list("jobs"), ...wanted])]);
  show(wanted.map(clips.byId).filter(Boolean).slice(0, 2));
  writeAddress(false);
}

function writeAddress(push) {
  const address = hashOf(viewed);
  if (address === (location.hash || "#")) return;
  history[push ? "pushState" : "replaceState"](null, "", address === "#" ? location.pathname : address);
}

// --- the views ---

function show(shownClips) {
  if (view && viewed.length === shownClips.length && viewed.every((clip, at) => clip === shownClips[at])) return;
  view?.close();
  viewed = shownClips;
  const actions = { cancel: (clip) => clips.cancel(clip), compare, twin };
  view = !viewed.length ? null : viewed.length === 2 ? compareView(...viewed, clips) : scoreView(viewed[0], clips, actions);
  find("view").replaceChildren(...(view ? [view.element] : []));
  document.title = view ? `${viewed.map(({ name }) => name).join(" and ")} – Motion reward` : "Motion reward";
  layOut();
}

function layOut() {
  document.body.classList.toggle("empty", !clips.list.length);
  find("list").hidden = !clips.list.length || (clips.list.length === 1 && viewed.length === 1);
}

function goTo(...shownClips) {
  show(shownClips);
  writeAddress(true);
  find("view").querySelector("h2")?.focus();
}

function open(clip) {
  goTo(clip);
}

function compare(a, b) {
  goTo(a, b);
}

function remove(clip) {
  if (viewed.includes(clip)) show([]);
  clips.remove(clip);
}

function csv() {
  download(csvOf(clips.list), "motion-rewards.csv", "text/csv");
}

/** A plain copy and a faulty one, so that nothing but the fault differs, scored from the same query points. */
async function twin(clip, fault, strength) {
  const [plain, faulty] = await Promise.all([copyOf(clip.file), copyOf(clip.file, { fault, strength })]);
  const context = { group_id: `page-${crypto.getRandomValues(new Uint32Array(2)).join("-")}` };
  const base = clip.name.replace(/\.[^.]*$/, "");
  const [a, b] = [["plain", plain], [`${fault}-${strength}`, faulty]].map(([name, { blob, fps }]) => {
    const file = new File([blob], `${base}.${name}.mp4`, { type: "video/mp4" });
    return clips.add([file], { context, copy: { fps } })[0];
  });
  [a, b].forEach(picturing);
  compare(a, b);
}

// --- clips in ---

async function picturing(clip) {
  const thumb = await thumbOf(clip.file);
  if (thumb) clips.setThumb(clip, thumb);
}

async function take(files) {
  const added = clips.add(files);
  if (!added.length) return;
  announce(added.length === 1 ? `${added[0].name} added` : `${added.length} clips added`);
  if (clips.list.length === 1) open(added[0]);
  else if (viewed.length) goTo();
  for (const clip of added) await picturing(clip); // one after the other: they share a decoder with the view
}

const isTyping = (event) => event.target.closest?.("input:not([type=file]), textarea");
const input = find("files");
input.addEventListener("change", () => {
  take([...input.files]);
  input.value = "";
});
document.addEventListener("paste", (event) => {
  if (isTyping(event)) return;
  if (event.clipboardData.files.length) take([...event.clipboardData.files]);
  else if (event.clipboardData.getData("text")) announce("Paste a file. The server fetches no addresses.");
});
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    if (event.target.closest?.("#view input[type=file]")) return;
    event.preventDefault();
    find("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") take([...event.dataTransfer.files]);
  });
}

// --- the server and its key ---

function notice(text) {
  find("notice").hidden = !text;
  find("notice").textContent = text;
}

async function greet() {
  try {
    const { profile, discriminator_version, limits } = await model();
    find("model").textContent = `${profile} · ${discriminator_version}`;
    find("model").title = `Clips of up to ${limits.max_duration_s} s and ${limits.max_frames} frames`;
    notice("");
  } catch (error) {
    refused(error);
    if (error.passes) setTimeout(greet, AGAIN_MS);
  }
}

function refused(error) {
  const needsKey = error.status === 401 || error.status === 403;
  if (needsKey) find("key").open = true;
  if (needsKey || error.status === 0 || error.code === "not_ready") notice(error.message);
}

find("key-field").value = apiKey();
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(find("key-field").value.trim());
  find("key").open = false;
  greet();
  clips.withKey();
});
find("key-forget").addEventListener("click", () => {
  setApiKey("");
  find("key-field").value = "";
  announce("The key is forgotten");
});
find("home").addEventListener("click", (event) => {
  event.preventDefault();
  goTo();
});

// --- changes ---

const changed = new Set();
clips.addEventListener("change", ({ detail }) => {
  if (!changed.size) requestAnimationFrame(flush); // many changes may come in one frame
  changed.add(detail);
});
function flush() {
  for (const clip of changed) {
    table.update(clip);
    view?.update(clip);
    if (clip.phase === "error" && !viewed.includes(clip)) announce(`${clip.name}: ${clip.error.message}`);
    if (clip.phase === "ok") notice("");
  }
  changed.clear();
}
clips.addEventListener("list", () => {
  table.list();
  view?.update(null); // a clip that is gone cannot be chosen any more
  layOut();
  writeSoon();
});
clips.addEventListener("id", writeSoon);
let writing = null;
/** Browsers refuse an address that changes very often. */
function writeSoon() {
  writing ??= setTimeout(() => ((writing = null), writeAddress(false)), ADDRESS_MS);
}
clips.addEventListener("refused", ({ detail }) => refused(detail));
window.addEventListener("popstate", readAddress);

find("list").append(h("div", {}, table.element));
layOut();
readAddress();
greet();
