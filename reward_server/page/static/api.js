// Talks to the server that sent this page, and to no other. Errors are in the server's own words.

const KEY = "motion-reward-key";

export class ServerError extends Error {
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }

  /** Whether the same request may succeed a little later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status === 503;
  }
}

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

const headers = () => (apiKey() ? { authorization: `Bearer ${apiKey()}` } : {});

function failure(status, text, retryAfter) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new ServerError(status, code, message, Number(retryAfter) || null);
  } catch {
    const told = status ? `The server answered with status ${status}.` : "The server does not answer: see whether it still runs, then reload this page.";
    return new ServerError(status, status ? `http_${status}` : "no_answer", told, Number(retryAfter) || null);
  }
}

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw failure(0, "", null);
  }
  if (!answer.ok) throw failure(answer.status, await answer.text(), answer.headers.get("retry-after"));
  return answer;
}

/** The served model. */
export const model = async () => (await request("/v1/model")).json();

/** The JSON text of a job, as the server wrote it. Waits at most `waitS` for its end. */
export async function jobText(id, waitS = 0, signal = undefined) {
  return (await request(`/v1/jobs/${encodeURIComponent(id)}?wait_s=${waitS}`, { signal })).text();
}

/** A copy of a clip that browsers play; with `fault`, its faulty twin. */
export async function copyOf(file, { fault = "", strength = 1, signal = undefined } = {}) {
  const query = new URLSearchParams({ fault, strength });
  const answer = await request(`/v1/page/copy?${query}`, { method: "POST", body: form(file, {}), signal });
  const fps = Number(answer.headers.get("x-clip-fps"));
  return { blob: await answer.blob(), fps, startS: Number(answer.headers.get("x-clip-start-s")) };
}

/** Queues a clip and returns its job's id. `onProgress` gets the share that is sent, 0 to 1. */
export function submit(file, context, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest(); // fetch does not tell how much is sent
    sending.open("POST", "/v1/jobs");
    for (const [name, value] of Object.entries(headers())) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    sending.onload = () => {
      if (sending.status === 202) resolve(JSON.parse(sending.responseText).jobs[0].id);
      else reject(failure(sending.status, sending.responseText, sending.getResponseHeader("retry-after")));
    };
    sending.onerror = () => reject(failure(0, "", null));
    sending.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => sending.abort());
    if (signal.aborted) reject(new DOMException("cancelled", "AbortError"));
    else sending.send(form(file, { explain: "true", ...context }));
  });
}

export const isTensor = (name) => /\.safetensors$/i.test(name);

function form(file, fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  data.append(isTensor(file.name) ? "tensor" : "video", file, file.name);
  return data;
}
