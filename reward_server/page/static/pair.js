// Two players with one clock. The longer clip leads, and the other follows it frame by frame.

const TUNE_FRAMES = 0.2; // drift that is corrected by speed while both play
const JUMP_S = 0.2; // drift that is corrected by a jump

export class Pair extends EventTarget {
  #rate = 1;

  constructor(first, second) {
    super();
    const longer = second.source.duration_s > first.source.duration_s;
    [this.lead, this.other] = longer ? [second, first] : [first, second];
    for (const player of [first, second]) player.loop = false;
    this.repeat = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.lead.addEventListener("time", () => this.#follow());
    this.lead.addEventListener("state", () => this.dispatchEvent(new Event("state")));
    this.lead.addEventListener("end", () => this.#atEnd());
  }

  get frame() {
    return this.lead.frame;
  }

  get numFrames() {
    return this.lead.numFrames;
  }

  get timeS() {
    return this.lead.timeS;
  }

  get playing() {
    return this.lead.playing;
  }

  get rate() {
    return this.#rate;
  }

  set rate(value) {
    this.#rate = this.lead.rate = this.other.rate = value;
  }

  seek(timeS) {
    this.lead.seek(timeS);
    this.#align();
  }

  seekFrame(frame) {
    this.lead.seekFrame(frame);
    this.#align();
  }

  step(frames) {
    this.pause();
    this.seekFrame(this.frame + frames);
  }

  async play() {
    if (this.frame >= this.numFrames - 1) this.seekFrame(0);
    this.#align();
    await Promise.all([this.lead.play(), this.#otherHasMore() && this.other.play()]);
  }

  pause() {
    this.lead.pause();
    this.other.pause();
    this.other.rate = this.#rate;
    this.#align();
  }

  #otherHasMore = () => this.lead.preciseS < this.other.source.duration_s - 1 / this.other.fps;

  #align() {
    this.other.seek(this.lead.timeS + 1e-3);
    this.dispatchEvent(new Event("time"));
  }

  #follow() {
    if (this.playing && this.other.playing) {
      const drift = this.lead.preciseS - this.other.preciseS;
      if (Math.abs(drift) > JUMP_S && this.#otherHasMore()) this.other.seek(this.lead.preciseS);
      else if (Math.abs(drift) * this.other.fps > TUNE_FRAMES) this.other.rate = this.#rate * Math.min(1.3, Math.max(0.7, 1 + 3 * drift));
      else if (this.other.rate !== this.#rate) this.other.rate = this.#rate;
    }
    this.dispatchEvent(new Event("time"));
  }

  #atEnd() {
    this.other.pause();
    if (!this.repeat) return;
    this.seekFrame(0);
    this.play();
  }
}
