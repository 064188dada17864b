// Says what an explanation shows at one moment, as reward_server/explain/timeline.py does for drawn files.

const TAIL_FRAMES = 3;
const VISIBLE = 0.5;

export class Timeline {
  #low = 0;
  #high = 1;

  constructor(explanation) {
    this.windows = explanation.windows.map((window) => ({
      ...window,
      stepS: (window.times_s.at(-1) - window.times_s[0]) / (window.times_s.length - 1),
      cells: bytesOf(window.residual.cells),
    }));
    this.#setRange();
  }

  /** The window, the place in it, and the residual's pair at `timeS`; null between windows. */
  at(timeS) {
    const number = this.#windowAt(timeS);
    if (number === null) return null;
    const window = this.windows[number];
    const last = window.times_s.length - 1;
    const place = Math.min(Math.max((timeS - window.times_s[0]) / window.stepS, 0), last);
    return { number, window, place, pair: Math.min(Math.floor(place), last - 1) };
  }

  /** The tracks at a moment: {x, y, tail, visible, share}, in pixels of the clip as displayed. */
  marks({ window, place }) {
    const before = Math.floor(place);
    const after = Math.ceil(place);
    const part = place - before;
    const first = Math.max(0, before - TAIL_FRAMES + 1);
    const between = (values) => (1 - part) * values[before] + part * values[after];
    return window.tracks.map((track) => {
      const end = [between(track.x_px), between(track.y_px)];
      const way = track.x_px.slice(first, before + 1).map((x, at) => [x, track.y_px[first + at]]);
      const visible = track.visibility[Math.round(place)] >= VISIBLE;
      return { x: end[0], y: end[1], tail: [...way, end], visible, share: track.share };
    });
  }

  /** Opacities 0 to 1 of a pair's map, row by row: 0 below the highest quarter of the clip's residuals. */
  haze({ window, pair }) {
    const { height, width, top } = window.residual;
    const cells = window.cells.subarray(pair * height * width, (pair + 1) * height * width);
    return Float32Array.from(cells, (byte) => {
      const level = ((byte / 255) * top - this.#low) / (this.#high - this.#low);
      return Math.min(1, Math.max(0, level));
    });
  }

  #windowAt(timeS) {
    let best = null;
    this.windows.forEach(({ times_s, stepS }, number) => {
      const place = (timeS - times_s[0]) / stepS;
      const far = Math.abs(timeS - (times_s[0] + times_s.at(-1)) / 2);
      if (place >= -0.5 && place <= times_s.length - 0.5 && (!best || far < best.far)) best = { number, far };
    });
    return best && best.number;
  }

  /** From a residual that a quarter of the cells exceed to one that hardly any exceeds, in gray levels. */
  #setRange() {
    const counts = new Map(); // by byte; all windows have one scale
    let total = 0;
    for (const { cells } of this.windows) {
      for (const byte of cells) counts.set(byte, (counts.get(byte) ?? 0) + 1);
      total += cells.length;
    }
    if (!total) return;
    const bytes = [...counts.keys()].sort((a, b) => a - b);
    const below = (share) => {
      let seen = 0;
      return bytes.find((byte) => (seen += counts.get(byte)) >= share * total) ?? bytes.at(-1);
    };
    const top = this.windows[0].residual.top;
    this.#low = (below(0.75) / 255) * top;
    this.#high = Math.max((below(0.995) / 255) * top, this.#low + 1); // one level: less is the noise of coding
  }
}

function bytesOf(base64) {
  const text = atob(base64);
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}
