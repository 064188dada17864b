// Shows one clip and keeps its time: a video with a canvas over it, or the bare canvas with a clock of its own.
//
// A frame's number is its time multiplied by the rate. The video is always sought to the middle of a frame, so that
// rounding never shows a neighbour.

import { h } from "./dom.js";

const EARLY_S = 0.002; // by which a video may report a frame before its time

export class Player extends EventTarget {
  #video = null;
  #startS = 0; // of the video, after the first frame of the clip
  #clock = null; // {at, frame} of a clock that runs
  #frame = 0;
  #rate = 1;
  #url = null;
  #observer = null;
  #closed = false;
  #ticking = 0; // the next frame of the clock
  loop = !matchMedia("(prefers-reduced-motion: reduce)").matches;

  /** `source` is the provenance's: frames, fps, duration_s, height_px, width_px. `draw(context, player)` fills the canvas. */
  constructor(source, draw, label) {
    super();
    Object.assign(this, { source, draw, fps: source.fps, width: source.width_px, height: source.height_px });
    this.canvas = h("canvas", { role: "img", "aria-label": label });
    this.element = h("div", { class: "stage" }, this.canvas);
    this.element.style.aspectRatio = `${this.width} / ${this.height}`;
    this.element.style.maxWidth = `calc(70vh * ${this.width / this.height})`; // a limit on the height would stretch it
    this.#observer = new ResizeObserver(() => this.#resize());
    this.#observer.observe(this.element);
  }

  get numFrames() {
    return Math.max(1, Math.round(this.source.duration_s * this.fps));
  }

  get frame() {
    return this.#frame;
  }

  get timeS() {
    return this.#frame / this.fps;
  }

  get playing() {
    return this.#video ? !this.#video.paused : this.#clock !== null;
  }

  /** The time of the clock, also between two frames. */
  get preciseS() {
    return this.#video ? this.#video.currentTime + this.#startS : this.timeS;
  }

  get rate() {
    return this.#rate;
  }

  get hasPicture() {
    return this.#video !== null;
  }

  /** Shows a file that the browser can play, at its own rate or that of a copy. Rejects if it cannot. */
  async attach(blob, { fps = this.source.fps, startS = 0 } = {}) {
    const video = h("video", { playsinline: true, preload: "auto", "aria-hidden": "true", tabindex: "-1" });
    video.muted = true;
    const url = URL.createObjectURL(blob);
    video.src = url;
    try {
      await new Promise((resolve, reject) => {
        video.addEventListener("loadeddata", resolve, { once: true });
        video.addEventListener("error", () => reject(new Error("the browser cannot play this file")), { once: true });
      });
      if (!video.videoWidth) throw new Error("the browser shows no picture of this file");
      if (this.#closed) throw new Error("the view is closed");
    } catch (error) {
      URL.revokeObjectURL(url);
      throw error;
    }
    const timeS = this.timeS;
    this.pause();
    this.#url = url;
    [this.#video, this.#startS, this.fps] = [video, startS, fps];
    video.playbackRate = this.#rate;
    video.addEventListener("timeupdate", () => this.#show(video.currentTime)); // for browsers that do not tell frames
    for (const event of ["play", "pause"]) video.addEventListener(event, () => this.#changed("state"));
    video.addEventListener("ended", () => this.#atEnd());
    this.element.prepend(video);
    this.#follow();
    this.seek(timeS);
  }

  seek(timeS) {
    this.seekFrame(Math.floor(timeS * this.fps + 1e-3));
  }

  seekFrame(frame) {
    const held = Math.min(Math.max(0, frame), this.numFrames - 1);
    if (this.#clock) this.#clock = { at: performance.now(), frame: held };
    if (this.#video) {
      const last = (this.#video.duration || Infinity) - 0.5 / this.fps; // a video that is sought to its end "ends", and would begin again
      this.#video.currentTime = Math.max(0, Math.min((held + 0.5) / this.fps - this.#startS, last));
    }
    this.#frame = held;
    this.#changed("time");
  }

  step(frames) {
    this.pause();
    this.seekFrame(this.#frame + frames);
  }

  async play() {
    if (this.#frame >= this.numFrames - 1) this.seekFrame(0);
    if (this.#video) return this.#video.play().catch(() => {}); // a pause may come first
    this.#clock = { at: performance.now(), frame: this.#frame };
    this.#changed("state");
    cancelAnimationFrame(this.#ticking);
    this.#ticking = requestAnimationFrame(() => this.#tick());
  }

  pause() {
    if (this.#video && !this.#video.paused) {
      this.#video.pause();
      this.seekFrame(this.#frame);
    }
    if (!this.#clock) return;
    this.#clock = null;
    this.#changed("state");
  }

  set rate(value) {
    if (this.#clock) this.#clock = { at: performance.now(), frame: this.#frame };
    this.#rate = value;
    if (this.#video) this.#video.playbackRate = value;
  }

  /** Draws again at the same moment. */
  redraw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.draw(context, this);
  }

  close() {
    this.#closed = true;
    this.pause();
    this.#observer.disconnect();
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#video?.removeAttribute("src");
    this.#video?.load(); // lets the decoder go
    this.element.remove();
  }

  /** Follows every frame that the video shows. */
  #follow() {
    const video = this.#video;
    if (!video.requestVideoFrameCallback) return;
    const next = (_, { mediaTime }) => {
      this.#show(mediaTime);
      if (this.element.isConnected) video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
  }

  /** Takes the frame that a playing video shows. A paused one shows the frame that was sought, perhaps a little later. */
  #show(mediaS) {
    if (this.#video.paused || this.#video.seeking) return;
    const frame = Math.floor((mediaS + this.#startS + EARLY_S) * this.fps);
    this.#frame = Math.min(Math.max(0, frame), this.numFrames - 1);
    this.#changed("time");
  }

  #tick() {
    if (!this.#clock || !this.element.isConnected) return;
    const { at, frame } = this.#clock;
    const passed = Math.floor(((performance.now() - at) / 1000) * this.#rate * this.fps);
    const now = Math.min(frame + passed, this.numFrames - 1);
    if (now !== this.#frame) {
      this.#frame = now;
      this.#changed("time");
    }
    if (frame + passed >= this.numFrames) this.#atEnd();
    else this.#ticking = requestAnimationFrame(() => this.#tick());
  }

  #atEnd() {
    this.pause();
    this.#changed("end");
    if (this.loop && !this.#closed) this.play();
  }

  #changed(name) {
    this.redraw();
    this.dispatchEvent(new Event(name));
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.element.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.element.clientHeight * ratio));
    this.redraw();
  }
}
