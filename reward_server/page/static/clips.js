// Keeps the clips of this tab and takes each through its phases: waiting, uploading, queued, running, and an end.

import { jobText, ServerError, submit } from "./api.js";

const UPLOADS = 2; // at once
const WAITS = 3; // jobs asked about at once; browsers open six connections to a server
const ASK_S = 1; // how long the server may hold a question
const AGAIN_MS = 2000;
const REST_MS = 200; // between two questions, should the server answer at once
const STORE_MS = 500;
const STORED = "motion-reward-clips"; // names and small pictures, in this tab alone
const KEPT_RESULTS = 4; // whole results in memory; an explanation is about 0.5 MB

export const ENDS = new Set(["ok", "error", "cancelled"]);

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let nextKey = 1;

/**
 * One clip. `file` is null after a reload. `nameless`: the tab knows only its job. `reward` has no explanation;
 * `Clips.result` gets the whole result.
 */
export class Clip {
  constructor({ name, file = null, id = null, context = {}, thumb = null, copy = null, nameless = false }) {
    Object.assign(this, { key: nextKey++, name, file, id, context, thumb, copy, nameless });
    Object.assign(this, { phase: id ? "queued" : "waiting", share: 0, reward: null, provenance: null, error: null });
    Object.assign(this, { note: "", abort: new AbortController() });
  }

  get ended() {
    return ENDS.has(this.phase);
  }
}

export class Clips extends EventTarget {
  list = [];
  #busy = { uploads: 0, waits: 0 };
  #results = new Map();
  #storing = null;

  constructor() {
    super();
    window.addEventListener("pagehide", () => this.#storeNow());
  }

  /** Adds files, or copies of clips, and sends them. Returns the clips. */
  add(files, more = {}) {
    const added = [...files].map((file) => new Clip({ name: file.name || "pasted clip", file, ...more }));
    this.list.push(...added);
    this.#listChanged();
    return added;
  }

  /** Adds jobs that were queued before, by id. */
  restore(ids) {
    const known = new Set(this.list.map((clip) => clip.id));
    const stored = JSON.parse(sessionStorage.getItem(STORED) ?? "{}");
    const fresh = ids.filter((id) => !known.has(id));
    this.list.push(...fresh.map((id) => new Clip({ id, name: `clip ${id.slice(-8)}`, nameless: !stored[id], ...stored[id] })));
    if (fresh.length) this.#listChanged();
  }

  byId = (id) => this.list.find((clip) => clip.id === id);

  /** Stops waiting for a clip. A job that is queued already goes on at the server. */
  cancel(clip) {
    if (clip.ended) return;
    clip.abort.abort();
    this.#set(clip, { phase: "cancelled", note: clip.id ? "The server may still score it." : "" });
    this.#pump();
  }

  remove(clip) {
    this.cancel(clip);
    this.list = this.list.filter((other) => other !== clip);
    this.#results.delete(clip);
    this.#listChanged();
  }

  /** Tries clips again that were refused for want of a key. */
  withKey() {
    for (const clip of this.list.filter((one) => ["unauthenticated", "forbidden"].includes(one.error?.code))) {
      this.#set(clip, { phase: clip.id ? "queued" : "waiting", error: null });
    }
    this.#pump();
  }

  /** The whole result of a scored clip, and the server's text of it. */
  async result(clip) {
    if (!this.#results.has(clip)) this.#keep(clip, await jobText(clip.id));
    return this.#results.get(clip);
  }

  setThumb(clip, thumb) {
    this.#set(clip, { thumb });
    this.#store();
  }

  #keep(clip, text) {
    const job = JSON.parse(text);
    if (job.state !== "done") return job;
    this.#results.set(clip, { ...job.result, text });
    for (const old of [...this.#results.keys()].slice(0, -KEPT_RESULTS)) this.#results.delete(old);
    return job;
  }

  #set(clip, values) {
    Object.assign(clip, values);
    this.dispatchEvent(new CustomEvent("change", { detail: clip }));
  }

  #listChanged() {
    this.#store();
    this.dispatchEvent(new Event("list"));
    this.#pump();
  }

  /** Writes names and pictures down, once for many changes. */
  #store() {
    this.#storing ??= setTimeout(() => this.#storeNow(), STORE_MS);
  }

  #storeNow() {
    this.#storing = null;
    const named = this.list.filter((clip) => clip.id).map(({ id, name, thumb, nameless }) => [id, { name, thumb, nameless }]);
    try {
      sessionStorage.setItem(STORED, JSON.stringify(Object.fromEntries(named)));
    } catch {
      // no room: after a reload clips have no names
    }
  }

  #pump() {
    const next = (phase) => this.list.find((clip) => clip.phase === phase && !clip.held);
    for (let clip; this.#busy.uploads < UPLOADS && (clip = next("waiting")); ) this.#run("uploads", clip, this.#upload);
    for (let clip; this.#busy.waits < WAITS && (clip = next("queued")); ) this.#run("waits", clip, this.#wait);
  }

  async #run(kind, clip, work) {
    this.#busy[kind] += 1;
    clip.held = true;
    try {
      await work.call(this, clip);
    } catch (error) {
      await this.#failed(clip, error);
    }
    this.#busy[kind] -= 1;
    clip.held = false;
    this.#pump();
  }

  async #upload(clip) {
    this.#set(clip, { phase: "uploading", share: 0, note: "" });
    const onProgress = (share) => clip.ended || this.#set(clip, { share });
    const id = await submit(clip.file, clip.context, onProgress, clip.abort.signal);
    if (clip.ended) return;
    this.#set(clip, { phase: "queued", id, share: 1 });
    this.#store();
    this.dispatchEvent(new Event("id"));
  }

  async #wait(clip) {
    while (!clip.ended) {
      const job = this.#keep(clip, await jobText(clip.id, ASK_S, clip.abort.signal));
      if (clip.ended) return;
      if (job.state === "done") return this.#end(clip, job.result);
      this.#set(clip, { phase: job.state, note: "" });
      await pause(REST_MS);
    }
  }

  #end(clip, result) {
    const { outcome, provenance, error, context } = result;
    const reward = result.reward && { ...result.reward, explanation: null };
    this.#set(clip, { phase: outcome === "ok" ? "ok" : "error", outcome, reward, provenance, error, context });
  }

  async #failed(clip, error) {
    if (clip.ended) return;
    if (!(error instanceof ServerError)) {
      this.#set(clip, { phase: "error", error: { code: error.name, message: error.message } });
      return;
    }
    this.dispatchEvent(new CustomEvent("refused", { detail: error }));
    if (error.passes) {
      const wait = error.retryAfterS ? error.retryAfterS * 1000 : AGAIN_MS;
      this.#set(clip, { phase: clip.id ? "queued" : "waiting", note: `${error.message} Trying again.` });
      await pause(wait);
      return;
    }
    this.#set(clip, { phase: "error", outcome: "failed", error: { code: error.code, message: error.message } });
  }
}
