// Draws tracks and the residual's haze over a frame. Colours and marks are those of `motion-reward score --annotate`.

const RAISES = "#40c4ff";
const LOWERS = "#ffb020";
const EDGE = "#101014";
const HAZE = [255, 32, 112];
const MOST_HAZE = 0.6;

/** A function for Player's `draw`. `shown` has the switches {tracks, heat}. */
export function overlay(timeline, shown) {
  const hazes = new Map();
  return (context, player) => {
    const moment = timeline.at(player.timeS);
    if (!moment) return;
    if (shown.heat) drawHaze(context, timeline, moment, hazes);
    if (shown.tracks) drawTracks(context, timeline.marks(moment), player);
  };
}

function drawHaze(context, timeline, moment, hazes) {
  const { height, width } = moment.window.residual;
  if (!height || !width) return; // there was no room for maps
  const key = `${moment.number}/${moment.pair}`;
  if (!hazes.has(key)) hazes.set(key, hazeOf(timeline.haze(moment), width, height));
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(hazes.get(key), 0, 0, context.canvas.width, context.canvas.height);
}

function hazeOf(levels, width, height) {
  const small = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  levels.forEach((level, at) => image.data.set([...HAZE, Math.round(level * MOST_HAZE * 255)], 4 * at));
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

function drawTracks(context, marks, player) {
  const { width, height } = context.canvas;
  const at = ([x, y]) => [((x + 0.5) * width) / player.width, ((y + 0.5) * height) / player.height];
  const unit = Math.max(2.5, Math.min(width, height) / 130);
  const sorted = marks.sort((a, b) => Math.abs(a.share) - Math.abs(b.share)); // the largest share is on top
  context.lineJoin = context.lineCap = "round";
  for (const { tail, share } of sorted.filter((mark) => mark.visible)) {
    const path = new Path2D();
    tail.map(at).forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
    stroke(context, path, share, unit * 0.5, unit * 0.95);
  }
  for (const { x, y, visible, share } of sorted) {
    const path = new Path2D();
    path.arc(...at([x, y]), visible ? unit : unit * 1.6, 0, 2 * Math.PI);
    if (visible) {
      context.lineWidth = unit * 0.7;
      context.strokeStyle = EDGE;
      context.stroke(path);
      context.fillStyle = colour(share);
      context.fill(path);
    } else stroke(context, path, share, unit * 0.4, unit * 0.8);
  }
}

const colour = (share) => (share > 0 ? RAISES : LOWERS);

function stroke(context, path, share, wide, edge) {
  for (const [style, width] of [[EDGE, edge], [colour(share), wide]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke(path);
  }
}
