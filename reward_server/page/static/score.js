// The view of one clip: what happens to it, and then its rewards, its picture with tracks, and its plots.

import { apiKey, isTensor } from "./api.js";
import { controls } from "./controls.js";
import { ownCurves } from "./curves.js";
import { announce, copyText, download, h, nextFrame, seconds, signed } from "./dom.js";
import { FAULTS } from "./faults.js";
import { remarks, rewardCards } from "./meaning.js";
import { overlay } from "./overlay.js";
import { picture } from "./picture.js";
import { Player } from "./player.js";
import { stateOf } from "./table.js";
import { Timeline } from "./timeline.js";

const UNKNOWN = "CLIP";

export const shown = { tracks: true, heat: false }; // kept while the page is open

/** `actions`: cancel(clip), compare(a, b), twin(clip, fault, strength). Returns {element, update(clip), close}. */
export function scoreView(clip, clips, actions) {
  const body = h("div", {});
  const element = h("article", { class: "score", "aria-busy": !clip.ended }, h("h2", { tabindex: -1 }, clip.name), body);
  let open = null;
  const close = () => {
    open?.close();
    open = null;
  };
  const show = async () => {
    element.setAttribute("aria-busy", String(!clip.ended));
    if (clip.phase !== "ok") return void body.replaceChildren(underWay(clip, actions));
    try {
      const result = await clips.result(clip);
      if (!result.reward) throw new Error(result.error?.message ?? "the result is not there yet");
      await nextFrame(); // reading the answer, the picture, and the plots are three tasks
      if (open || !element.isConnected) return;
      open = explained(clip, result, clips, actions);
      body.replaceChildren(open.element);
      await nextFrame();
      open?.addRest();
    } catch (error) {
      body.replaceChildren(refusal(error.code ?? "", error.message));
    }
  };
  const update = (changed) => {
    if (changed === clip && !open) show();
    else open?.listChanged();
  };
  queueMicrotask(show);
  return { element, update, close };
}

/** The phases of a clip that has no reward yet, or why it gets none. */
function underWay(clip, actions) {
  if (clip.phase === "error") return refusal(clip.error.code, clip.error.message);
  if (clip.phase === "cancelled") return h("p", {}, "Cancelled. ", clip.note);
  const at = { waiting: 0, uploading: 0, queued: 1, running: 2 }[clip.phase];
  const steps = ["Upload", "Queue", "Scoring"].map((name, step) =>
    h("li", { class: step < at ? "done" : step === at ? "now" : "", "aria-current": step === at && "step" }, name),
  );
  const share = clip.phase === "uploading" ? clip.share : undefined;
  return h(
    "div",
    { class: "under-way" },
    h("ol", { class: "steps" }, ...steps),
    h("progress", { max: 1, value: share, "aria-label": `Progress of ${clip.name}` }),
    h("p", {}, stateOf(clip), clip.note && h("span", { class: "quiet" }, ` ${clip.note}`)),
    h("button", { type: "button", onclick: () => actions.cancel(clip) }, "Cancel"),
  );
}

export function refusal(code, message) {
  return h("div", { class: "notice", role: "alert" }, h("p", {}, message), code && h("p", { class: "quiet" }, h("code", {}, code)));
}

function explained(clip, result, clips, actions) {
  const { reward, provenance } = result;
  const { explanation } = reward;
  const { source } = provenance;
  const player = new Player(source, explanation ? overlay(new Timeline(explanation), shown) : () => {}, `${clip.name} with its tracks`);
  const keys = controls(player, shown, () => player.redraw());
  let curves = null;
  const windowNote = h("p", { class: "quiet window-note" }, windowAt(reward, 0));
  const others = compareBox(clip, clips, actions);
  player.addEventListener("time", () => {
    curves?.cursor(player.timeS);
    windowNote.textContent = windowAt(reward, player.timeS);
  });
  announce(`${clip.name}: combined ${signed(reward.combined)}`);
  const element = h(
    "div",
    { class: "explained" },
    h("div", { class: "seen" }, player.element, picture(player, clip), keys.element, legend(), windowNote),
    h("div", { class: "judged" }, rewardCards(reward), remarks(reward, provenance)),
  );
  const addRest = () => {
    curves = explanation && ownCurves(result, source.duration_s, (timeS) => (player.pause(), player.seek(timeS)));
    curves?.cursor(player.timeS);
    element.append(
      h("div", { class: "over-time" }, curves ? curves.element : h("p", {}, "This result has no explanation, so there are no tracks and no plots.")),
      h("div", { class: "more" }, windowTable(reward), others.element, facts(clip, result), reproduce(clip, result)),
    );
  };
  return {
    element,
    addRest,
    listChanged: others.listChanged,
    close: () => {
      keys.close();
      player.close();
    },
  };
}

function legend() {
  return h(
    "p",
    { class: "quiet legend" },
    h("span", { class: "raises" }, "raises the long-term logit"),
    h("span", { class: "lowers" }, "lowers it"),
    h("span", { class: "lost" }, "out of sight"),
    h("span", { class: "hazy" }, "high residual"),
  );
}

function windowAt(reward, timeS) {
  const windows = reward.explanation?.windows ?? [];
  const at = windows.findIndex(({ times_s }) => timeS >= times_s[0] - 0.05 && timeS <= times_s.at(-1) + 0.05);
  if (at < 0) return "Between windows: not scored.";
  const { instantaneous, long_term } = reward.windows[at].logits;
  return `Window ${at + 1} of ${windows.length}: instantaneous ${signed(instantaneous)}, long-term ${signed(long_term)}`;
}

function windowTable(reward) {
  const rows = reward.windows.map(({ start_s, logits }, at) => {
    const times = reward.explanation?.windows[at].times_s;
    const span = times ? `${seconds(times[0])} to ${seconds(times.at(-1))}` : seconds(start_s);
    return h("tr", {}, h("th", { scope: "row" }, `${at + 1}`), h("td", {}, span), h("td", { class: "number" }, signed(logits.instantaneous)), h("td", { class: "number" }, signed(logits.long_term)));
  });
  const head = ["Window", "Time"].map((name) => h("th", { scope: "col" }, name));
  const numbers = ["Instantaneous", "Long-term"].map((name) => h("th", { scope: "col", class: "number" }, name));
  return h("section", {}, h("h3", {}, "Windows"), h("table", {}, h("thead", {}, h("tr", {}, ...head, ...numbers)), h("tbody", {}, ...rows)));
}

/** Choose another clip, or have a faulty twin made. */
function compareBox(clip, clips, actions) {
  const other = h("select", {}, h("option", {}, "no other scored clip"));
  const go = h("button", { type: "button", onclick: () => actions.compare(clip, clips.byId(other.value)) }, "Compare");
  const fault = h("select", { name: "fault" }, ...Object.entries(FAULTS).map(([name, says]) => h("option", { value: name }, says)));
  const strength = h(
    "select",
    { name: "strength" },
    ...[[1, "strong (1)"], [0.75, "0.75"], [0.5, "0.5"], [0.25, "mild (0.25)"]].map(([value, text]) => h("option", { value }, text)),
  );
  const told = h("p", { class: "quiet", role: "status" });
  let listed = "";
  const make = h("button", { type: "button" }, "Make a faulty twin");
  make.addEventListener("click", async () => {
    if (!clip.file) return void (told.textContent = "The page has no file of this clip any more. Choose it again above the controls.");
    make.disabled = true;
    told.textContent = "The server makes two copies, one plain and one faulty, so that the fault alone differs …";
    try {
      await actions.twin(clip, fault.value, Number(strength.value));
    } catch (error) {
      told.textContent = error.message;
    }
    make.disabled = false;
  });
  const listChanged = () => {
    const choices = clips.list.filter((one) => one !== clip && one.phase === "ok");
    other.disabled = go.disabled = !choices.length;
    const ids = choices.map(({ id }) => id).join();
    if (ids === listed) return;
    listed = ids;
    other.replaceChildren(...choices.map((one) => h("option", { value: one.id }, one.name)));
  };
  listChanged();
  const element = h(
    "section",
    { class: "compare-box" },
    h("h3", {}, "Compare"),
    h("div", { class: "row" }, h("label", { class: "field" }, "With", other), go),
    h("div", { class: "row" }, h("label", { class: "field" }, "Fault", fault), h("label", { class: "field" }, "Strength", strength), make),
    told,
  );
  return { element, listChanged };
}

function facts(clip, { reward, provenance }) {
  const { source, timings } = provenance;
  const motion = reward.dynamics;
  const rows = [
    ["Clip", `${source.width_px} × ${source.height_px}, ${source.fps.toFixed(2)} frames/s, ${source.frames} frames, ${source.codec}`],
    ["Scored at", `${provenance.width_px} × ${provenance.height_px}, ${provenance.fps_used.toFixed(2)} frames/s`],
    ["Discriminators", `${provenance.profile}, ${provenance.discriminator_version}`],
    motion && ["Motion", `${motion.total_motion.toFixed(3)} frame heights/s; camera ${motion.camera_motion.toFixed(3)}, objects ${motion.object_motion.toFixed(3)}`],
    ["Time", `queue ${timings.queue_ms.toFixed(0)} ms, decoding ${timings.decode_ms.toFixed(0)} ms, motion ${timings.motion_ms.toFixed(0)} ms, discriminators ${timings.discriminator_ms.toFixed(0)} ms`],
    ["Job", clip.id],
  ].filter(Boolean);
  return h("section", {}, h("h3", {}, "How it was scored"), h("dl", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

function reproduce(clip, result) {
  const command = curlOf(clip, result.context);
  const base = clip.name.replace(/\.[^.]*$/, "");
  const copyJson = h("button", { type: "button", onclick: () => copyText(result.text, copyJson) }, "Copy JSON");
  const copyCurl = h("button", { type: "button", onclick: () => copyText(command, copyCurl) }, "Copy command");
  return h(
    "section",
    {},
    h("h3", {}, "The same from a shell"),
    h("pre", {}, h("code", {}, command)),
    clip.nameless && h("p", { class: "quiet" }, `${UNKNOWN} stands for the file: this tab does not know its name.`),
    h(
      "div",
      { class: "row" },
      copyCurl,
      copyJson,
      h("button", { type: "button", onclick: () => download(result.text, `${base}.json`, "application/json") }, "Download JSON"),
      clip.copy && h("button", { type: "button", onclick: () => download(clip.file, clip.name, "video/mp4") }, "Download this copy"),
    ),
  );
}

/** The command that scores this clip again, with the context that decides about its reward. */
export function curlOf(clip, context) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const fields = ["explain=true", context.group_id && `group_id=${context.group_id}`, context.run_id && `run_id=${context.run_id}`];
  const plain = (text) => /^[\w=@.-]+$/.test(text);
  const file = clip.nameless ? UNKNOWN : clip.name;
  const name = plain(file) ? file : `"${file.replace(/[\\"]/g, (character) => `\\${character}`)}"`;
  const form = [`${isTensor(clip.name) ? "tensor" : "video"}=@${name}`, ...fields.filter(Boolean)];
  const key = apiKey() ? ['-H "Authorization: Bearer $MOTION_REWARD_API_KEY"'] : [];
  return ["curl -s", ...key, ...form.map((field) => `-F ${plain(field) ? field : quoted(field)}`), `${location.origin}/v1/score`].join(" ");
}
