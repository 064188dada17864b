// Gives a player its picture: the file itself, or a copy from the server where the browser cannot play the file.

import { copyOf, isTensor } from "./api.js";
import { h } from "./dom.js";

const NEVER = /\.(gif|webp|avi|y4m|safetensors)$/i; // no browser plays these as a video with a clock

/** Returns an element that says what is shown, and offers to choose the file again after a reload. */
export function picture(player, clip) {
  const note = h("p", { class: "quiet picture-note", role: "status" });
  if (clip.file) load(player, clip, note);
  else askAgain(player, clip, note);
  return note;
}

async function load(player, clip, note) {
  try {
    await attach(player, clip, note);
  } catch (error) {
    note.textContent = `No picture: ${error.message}`;
  }
}

async function attach(player, clip, note) {
  if (clip.copy) return player.attach(clip.file, clip.copy);
  if (!NEVER.test(clip.name) && !isTensor(clip.name)) {
    try {
      return await player.attach(clip.file);
    } catch {
      if (!player.element.isConnected) return; // the view is closed
      // a copy then
    }
  }
  note.textContent = "The browser cannot play this file. The server makes a copy …";
  clip.playable ??= copyOf(clip.file).catch((error) => {
    clip.playable = null;
    throw error;
  });
  const { blob, fps, startS } = await clip.playable;
  await player.attach(blob, { fps, startS });
  note.textContent = `Shown is a copy with ${fps.toFixed(3).replace(/\.?0+$/, "")} frames per second: the browser cannot play the file itself.`;
}

function askAgain(player, clip, note) {
  const input = h("input", { type: "file", "aria-label": `Choose ${clip.name} again` });
  input.addEventListener("change", () => {
    if (!input.files.length) return;
    clip.file = input.files[0];
    note.replaceChildren();
    load(player, clip, note);
  });
  note.append("The page keeps no clips over a reload. Choose the file again to see its picture: ", input);
}

const MOST_MS = 5000;
const THUMB = { width: 96, height: 54 };

/** A small picture of a file as a data URL, or null if the browser cannot play it. */
export async function thumbOf(file) {
  if (NEVER.test(file.name) && !/\.(gif|webp)$/i.test(file.name)) return null;
  const url = URL.createObjectURL(file);
  try {
    const still = /\.(gif|webp)$/i.test(file.name) ? await image(url) : await videoFrame(url);
    const [width, height] = [still.videoWidth ?? still.naturalWidth, still.videoHeight ?? still.naturalHeight];
    const factor = Math.min(THUMB.width / width, THUMB.height / height);
    const canvas = h("canvas", { width: Math.round(width * factor), height: Math.round(height * factor) });
    canvas.getContext("2d").drawImage(still, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.7);
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function image(url) {
  const element = new Image();
  element.src = url;
  await element.decode();
  return element;
}

function videoFrame(url) {
  const video = h("video", { preload: "auto" });
  video.muted = true;
  video.src = url;
  return new Promise((resolve, reject) => {
    setTimeout(reject, MOST_MS); // a broken file may never answer
    video.addEventListener("loadeddata", () => (video.currentTime = Math.min(0.5, video.duration / 2 || 0)), { once: true });
    video.addEventListener("seeked", () => resolve(video), { once: true });
    video.addEventListener("error", reject, { once: true });
  });
}
