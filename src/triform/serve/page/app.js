// The page: one model at a time, turns below one another.

import * as api from "./api.js";
import { filled, likeness, named } from "./judged.js";
import { action, bars, hideTip, icon, make, prose, tellTokens, tokenLine } from "./view.js";
import { current, preferred, speak, t } from "./words.js";

const $ = (id) => document.getElementById(id);
const log = $("log"), prompt = $("prompt"), form = $("settings-form");
const DEFAULTS = { system: "", temperature: 0.7, top_p: 0.95, min_p: 0, repetition_penalty: 1, top_k: "", max_tokens: 512, seed: "", stop: "", tokens: false };
const PATHS = { fill: "/v1/fill-mask", classify: "/v1/classify", see: "/v1/classify", embed: "/v1/embeddings", tag: "/v1/token-classify", answer: "/v1/answer" };

let models = [];
let turns = []; // {prompt, answer, tokens, calls, figures, element, …}, oldest first
let running = null; // the AbortController of the answer under way

const model = () => models.find((one) => one.id === $("model").value);

/** What the chosen model does here: chat, write (on), reply (by an encoder-decoder), fill, classify, see, choose (by texts), tag, embed, answer or none. */
function mode() {
  const found = model();
  if (!found) return "none";
  if (found.use === "see") return found.labels ? "see" : "choose";
  if (found.use !== "generate") return found.use in PATHS ? found.use : "none";
  if (found.form === "encoder-decoder") return "reply";
  return found.chat ? "chat" : "write";
}
const writes = () => ["chat", "write", "reply"].includes(mode());
const sees = () => ["see", "choose"].includes(mode());
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// Settings

const stored = () => ({ ...DEFAULTS, ...JSON.parse(localStorage.getItem("triform.settings") ?? "{}") });

function showSettings() {
  const values = stored();
  for (const input of form.elements) {
    if (!input.name) continue;
    if (input.type === "checkbox") input.checked = values[input.name];
    else input.value = values[input.name];
    const output = input.parentElement.querySelector("output");
    if (output) output.value = Number(input.value).toFixed(2);
  }
}

function keepSettings() {
  const values = {};
  for (const input of form.elements) if (input.name) values[input.name] = input.type === "checkbox" ? input.checked : input.value;
  localStorage.setItem("triform.settings", JSON.stringify(values));
  showSettings();
}

function sampling() {
  const values = stored();
  const found = { logprobs: true };
  for (const name of ["temperature", "top_p", "min_p", "repetition_penalty", "top_k", "max_tokens", "seed"]) {
    if (values[name] !== "") found[name] = Number(values[name]);
  }
  if (values.stop) found.stop = values.stop;
  return found;
}

// Asking

/** The path and the body of a request for the turn at a place. */
function request(place) {
  const text = turns[place].prompt, { id } = model();
  if (mode() === "write") return ["/v1/completions", { model: id, prompt: text, ...sampling(), logprobs: 5 }];
  const before = mode() === "chat" ? turns.slice(0, place).filter((turn) => turn.answer) : [];
  const messages = before.flatMap((turn) => [{ role: "user", content: turn.prompt }, { role: "assistant", content: turn.answer }]);
  const { system } = stored();
  if (system && mode() === "chat") messages.unshift({ role: "system", content: system });
  return ["/v1/chat/completions", { model: id, messages: [...messages, { role: "user", content: text }], ...sampling(), top_logprobs: 5 }];
}

async function write(turn, place, signal) {
  const began = performance.now();
  let first = null, count = 0;
  const [path, body] = request(place);
  for await (const chunk of api.stream(path, body, signal)) {
    if (chunk.usage) count = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const piece = choice.delta?.content ?? choice.text ?? "";
    const tokens = choice.logprobs?.content ?? older(choice.logprobs);
    if ((piece || tokens.length) && first === null) first = performance.now();
    turn.answer += piece;
    turn.tokens.push(...tokens);
    turn.calls.push(...(choice.delta?.tool_calls ?? []));
    turn.cut = choice.finish_reason === "length";
    if (piece || tokens.length) refresh(turn);
  }
  const seconds = (performance.now() - (first ?? began)) / 1000;
  turn.figures = { tokens: count, rate: count > 1 && seconds > 0 ? ((count - 1) / seconds).toFixed(1) : "–", first: waited((first ?? began) - began) };
}

const waited = (milliseconds) => (milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`);

/** Tokens of the older endpoint's shape in the newer's. */
function older(found) {
  return (found?.tokens ?? []).map((token, number) => ({
    ...spelled(token), logprob: found.token_logprobs[number],
    top_logprobs: Object.entries(found.top_logprobs[number]).map(([other, logprob]) => ({ ...spelled(other), logprob })),
  }));
}

function spelled(token) {
  const bytes = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(token)?.[1].slice(2).split("\\x").map((byte) => parseInt(byte, 16));
  return bytes ? { token: "\ufffd", bytes } : { token, bytes: [...new TextEncoder().encode(token)] };
}

async function judge(turn, signal) {
  const kind = mode();
  const input = kind === "embed" ? lines(turn.prompt) : turn.picture ?? turn.prompt;
  if (kind === "embed" && input.length < 2) throw new api.Failure(t("lines"), 400);
  if (kind === "fill" && !turn.prompt.includes("[MASK]")) throw new api.Failure(t("no_mask"), 400);
  const [question, ...passage] = turn.prompt.split("\n");
  if (kind === "answer" && !passage.join("").trim()) throw new api.Failure(t("no_passage"), 400);
  const asked = kind === "answer" ? { question, context: passage.join("\n"), top: 3 } : { input };
  if (kind === "choose") asked.labels = lines(turn.prompt);
  const found = await api.post(PATHS[model().use], { model: model().id, ...asked }, signal);
  if (kind === "embed") turn.result = [likeness(input, found.data.map((row) => row.embedding))];
  else if (kind === "classify" || turn.picture) turn.result = [bars(Object.entries(found.results[0].scores).sort((a, b) => b[1] - a[1]))];
  else if (kind === "tag") turn.result = [named(input, found.results[0])];
  else if (kind === "answer") turn.result = [bars(found.answers.map((one) => [one.text, one.score]))];
  else turn.result = filled(turn.prompt, found.results[0]);
  turn.figures = { tokens: found.usage.total_tokens };
}

async function answer(place) {
  const turn = turns[place];
  Object.assign(turn, { answer: "", tokens: [], calls: [], figures: null, error: null, stopped: false, cut: false, result: null, kind: mode() });
  running = turn.abort = new AbortController();
  turn.running = true;
  draw(turn);
  showState();
  $("said").textContent = t("is_working");
  try {
    await (writes() ? write(turn, place, running.signal) : judge(turn, running.signal));
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = true;
    else turn.error = error.status === 401 ? t("no_key") : error.message || t("offline");
    if (error.status === 401) openSettings(true);
  }
  turn.running = false;
  running = null;
  draw(turn);
  showState();
  keep();
  $("said").textContent = t("is_done");
}

// Turns

function said(turn) {
  if (turn.result) return turn.result;
  const shows = stored().tokens || turn.shows;
  const calls = turn.calls.map((call) => make("code", { class: "call" }, `${t("calls", { name: call.function.name })}\n${call.function.arguments}`));
  if (shows && turn.tokens.length) return [tokenLine(turn.tokens, turn.kind === "write" ? turn.prompt : ""), ...calls];
  if (turn.kind === "write") return [make("div", { class: "plain" }, make("span", { class: "lead" }, turn.prompt), turn.answer)];
  return [...prose(turn.answer), ...calls];
}

let waiting = false;

/** Draw a turn's text anew, at most once a frame, and stay at the end where one is. */
function refresh(turn) {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!turn.running) return;
    const stays = atEnd();
    turn.element.querySelector(".theirs .said").replaceChildren(...said(turn));
    if (stays) toEnd();
  });
}

const atEnd = () => $("main").scrollHeight - $("main").scrollTop - $("main").clientHeight < 80;
const toEnd = () => ($("main").scrollTop = $("main").scrollHeight);

function draw(turn) {
  const stays = atEnd() || turn.running;
  const place = turns.indexOf(turn);
  const picture = turn.picture ? make("img", { src: turn.picture, alt: turn.prompt }) : null;
  const mine = make("div", { class: "turn mine" }, make("div", { class: "said", dir: "auto" }, picture, turn.prompt), make("div", { class: "actions" }, picture ? null : action("edit", () => edit(place))));
  const body = make("div", { class: "said", dir: "auto" }, ...said(turn));
  const theirs = make("div", { class: turn.running ? "turn theirs running" : "turn theirs" }, body);
  if (turn.error) theirs.append(make("div", { class: "wrong", role: "alert" }, turn.error));
  if (turn.stopped) theirs.append(make("div", { class: "stopped" }, t("stopped")));
  if (!turn.running) theirs.append(actions(turn, place));
  const element = make("div", {}, turn.kind === "write" ? null : mine, theirs);
  if (turn.element?.isConnected) turn.element.replaceWith(element);
  else log.append(element);
  turn.element = element;
  if (stays) toEnd();
}

function actions(turn, place) {
  const row = make("div", { class: "actions" }, action("retry", () => again(place)));
  if (turn.answer) {
    const text = turn.kind === "write" ? turn.prompt + turn.answer : turn.answer;
    row.prepend(action("copy", async () => {
      await navigator.clipboard.writeText(text);
      $("said").textContent = t("copied");
    }));
  }
  if (turn.kind === "write") row.append(action("edit", () => edit(place)));
  if (turn.tokens.length) {
    const toggle = action("tokens", () => {
      turn.shows = !(turn.shows || stored().tokens);
      if (!turn.shows && stored().tokens) return form.elements.tokens.click();
      draw(turn);
    });
    toggle.setAttribute("aria-pressed", Boolean(turn.shows || stored().tokens));
    row.append(toggle);
  }
  const figures = turn.figures && (turn.figures.rate ? t("figures", turn.figures) : t("figures_short", turn.figures));
  const told = [figures, turn.cut ? t("cut") : null].filter(Boolean).join(" · ");
  row.append(make("span", { class: "figures" }, told));
  return row;
}

function send(text) {
  if (running || !text.trim() || mode() === "none") return;
  if (sees()) return pick();
  turns.push({ prompt: mode() === "write" ? text : text.trim() });
  showState();
  answer(turns.length - 1);
}

function pick() {
  if (running) return;
  if (mode() === "choose" && lines(prompt.value).length < 2) {
    $("note").textContent = t("lines");
    return prompt.focus();
  }
  $("file").click();
}

/** Have a picture judged; a large one is made smaller first, as a request may not be long. */
async function show(file) {
  let picture;
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, 1600 / Math.max(bitmap.width, bitmap.height));
    const canvas = Object.assign(document.createElement("canvas"), { width: Math.ceil(bitmap.width * scale), height: Math.ceil(bitmap.height * scale) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    picture = canvas.toDataURL(file.size > 2 ** 20 ? "image/jpeg" : "image/png", 0.92);
  } catch {
    $("note").textContent = t("no_picture");
    return;
  }
  turns.push({ prompt: mode() === "choose" ? prompt.value.trim() : file.name, picture });
  showState();
  answer(turns.length - 1);
}

/** Answer a turn once more; what came after it goes. */
function again(place) {
  if (running) return;
  cut(place + 1);
  answer(place);
}

function edit(place) {
  if (running) return;
  prompt.value = turns[place].prompt;
  cut(place);
  showState();
  keep();
  prompt.focus();
}

function cut(place) {
  for (const turn of turns.splice(place)) turn.element?.remove();
}

function clear() {
  running?.abort();
  cut(0);
  keep();
  showState();
  prompt.focus();
}

/** Keep the conversation for a reload of the tab. */
function keep() {
  const plain = turns.filter((turn) => !turn.result).map(({ prompt, answer, tokens, calls, figures, kind, cut }) => ({ prompt, answer, tokens, calls, figures, kind, cut }));
  try {
    sessionStorage.setItem("triform.turns", JSON.stringify({ model: $("model").value, turns: plain }));
  } catch {
    sessionStorage.removeItem("triform.turns");
  }
}

function recall() {
  const kept = JSON.parse(sessionStorage.getItem("triform.turns") ?? "null");
  if (!kept || kept.model !== $("model").value) return;
  turns = kept.turns;
  turns.forEach(draw);
}

// The page as a whole

function showState() {
  const kind = mode(), found = model();
  $("welcome").hidden = turns.length > 0;
  $("hello").textContent = t(`hello_${kind}`);
  $("about").textContent = t(`about_${kind}`, { model: found?.id, labels: (found?.labels ?? []).slice(0, 6).join(current() === "zh" ? "、" : ", ") });
  $("ideas").replaceChildren(...(kind === "none" ? [] : t(`ideas_${kind}`)).map((idea) => make("button", { type: "button", onclick: () => send(idea) }, idea)));
  prompt.placeholder = kind === "none" ? "" : t(`write_${kind}`);
  for (const element of document.querySelectorAll(".chat-only")) element.hidden = kind !== "chat";
  $("note").textContent = writes() && turns.some((turn) => turn.tokens?.length && (turn.shows || stored().tokens)) ? t("note") : "";
  $("pick").hidden = !sees();
  prompt.hidden = kind === "see";
  const go = $("go");
  go.dataset.title = running ? "stop" : "send";
  go.title = t(go.dataset.title);
  go.setAttribute("aria-label", go.title);
  go.replaceChildren(icon(go.dataset.title));
  go.hidden = kind === "see" && !running;
  go.disabled = !running && (!prompt.value.trim() || kind === "none");
}

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function openSettings(open) {
  $("settings-panel").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", open);
  if (open) $("close-settings").focus();
}

async function start() {
  try {
    models = await api.models();
  } catch (error) {
    if (error.status === 401) openSettings(true);
    $("note").textContent = error.status === 401 ? t("no_key") : t("offline");
    return;
  }
  const last = localStorage.getItem("triform.model");
  $("model").replaceChildren(...models.map((one) => make("option", { value: one.id, selected: one.id === last ? "" : undefined }, one.id)));
  cut(0);
  recall();
  showState();
}

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return running.abort();
    const text = prompt.value;
    if (sees()) return pick();
    prompt.value = "";
    grow();
    send(text);
  });
  $("pick").addEventListener("click", pick);
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) show($("file").files[0]);
    $("file").value = "";
  });
  prompt.addEventListener("input", () => (grow(), showState()));
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || (matchMedia("(pointer: coarse)").matches && innerWidth < 760)) return;
    event.preventDefault();
    if (!running) $("composer").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) running ? running.abort() : (hideTip(), openSettings(false));
    if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      prompt.focus();
    }
  });
  $("model").addEventListener("change", () => (localStorage.setItem("triform.model", $("model").value), clear()));
  $("new-chat").addEventListener("click", clear);
  $("open-settings").addEventListener("click", () => openSettings($("settings-panel").hidden));
  $("close-settings").addEventListener("click", () => (openSettings(false), $("open-settings").focus()));
  $("language").addEventListener("click", () => {
    const next = current() === "zh" ? "en" : "zh";
    localStorage.setItem("triform.language", next);
    speak(next);
    turns.filter((turn) => !turn.running).forEach(draw);
    showState();
  });
  $("theme-switch").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    localStorage.setItem("triform.theme", (document.documentElement.dataset.theme = dark ? "light" : "dark"));
  });
  form.addEventListener("input", () => (keepSettings(), showState()));
  form.elements.tokens.addEventListener("change", () => turns.filter((turn) => !turn.running).forEach((turn) => ((turn.shows = false), draw(turn))));
  form.addEventListener("reset", (event) => (event.preventDefault(), localStorage.removeItem("triform.settings"), showSettings()));
  form.addEventListener("submit", (event) => event.preventDefault());
  $("key-form").addEventListener("submit", (event) => (event.preventDefault(), start()));
  $("key-form").elements.key.addEventListener("change", (event) => (sessionStorage.setItem("triform.key", event.target.value.trim()), start()));
  tellTokens(log);
}

const theme = localStorage.getItem("triform.theme");
if (theme) document.documentElement.dataset.theme = theme;
speak(preferred());
showSettings();
listen();
showState();
start();
