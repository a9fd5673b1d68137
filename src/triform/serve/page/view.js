// Elements of the page. Text of models and people is put in as text, never as markup.

import { t } from "./words.js";

/** An element with properties (class, on…, others) and children. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) element.style.setProperty(key, value);
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${name}`);
  svg.append(use);
  return svg;
}

export function action(name, run) {
  return make("button", { type: "button", class: `icon ${name}`, "data-title": name, title: t(name), "aria-label": t(name), onclick: run }, icon(name));
}

export const percent = (share) => (share >= 0.9995 ? "100 %" : share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

/** A bar for each of [name, share], best first. */
export function bars(rows, title) {
  const lines = rows.map(([name, share]) =>
    make("div", { class: "row" }, make("code", { title: name }, shown(name)), make("meter", { min: 0, max: 1, value: share }), make("span", { class: "share" }, percent(share))),
  );
  return make("div", { class: "bars" }, title ? make("h4", {}, title) : null, ...lines);
}

/** A token's text with its spaces and line ends to be seen. */
export const shown = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";

// Tokens

/** One element a token of {token, logprob, bytes, top_logprobs}; a character of several tokens stands at its last. */
export function tokenLine(tokens, lead) {
  const line = make("div", { class: "tokens" }, lead ? make("span", { class: "lead" }, lead) : null);
  const decoder = new TextDecoder();
  for (const token of tokens) {
    const text = token.bytes ? decoder.decode(Uint8Array.from(token.bytes), { stream: true }) : token.token;
    const surprise = Math.min(100, Math.round(-token.logprob * 22));
    const part = make("span", { class: text ? "token" : "token part", tabindex: -1, "--surprise": surprise }, text || "·");
    part.token = token;
    line.append(part);
  }
  const first = line.querySelector(".token");
  if (first) first.tabIndex = 0;
  return line;
}

const tip = document.getElementById("tip");

function showTip(part) {
  const { token } = part;
  const rows = [token, ...(token.top_logprobs ?? []).filter((other) => other.token !== token.token || other.bytes?.join() !== token.bytes?.join())];
  rows.sort((a, b) => b.logprob - a.logprob);
  tip.replaceChildren(
    ...rows.map((row) => {
      const share = Math.exp(row.logprob);
      const parts = [make("code", {}, shown(row.token)), make("meter", { min: 0, max: 1, value: share }), make("span", { class: "share" }, percent(share))];
      return make("div", { class: row === token ? "row chosen" : "row" }, ...parts);
    }),
  );
  tip.hidden = false;
  const at = part.getClientRects()[0];
  const below = at.bottom + tip.offsetHeight + 12 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? at.bottom + 6 : at.top - tip.offsetHeight - 6}px`;
}

export const hideTip = () => (tip.hidden = true);

/** Let tokens within an element tell of themselves: under the mouse, at a tap, and by the arrow keys. */
export function tellTokens(within) {
  within.addEventListener("pointerover", (event) => (event.target.token ? showTip(event.target) : hideTip()));
  within.addEventListener("pointerleave", hideTip);
  within.addEventListener("focusin", (event) => event.target.token && showTip(event.target));
  within.addEventListener("focusout", hideTip);
  within.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && event.target.token ? event.target[step] : null;
    if (!next?.token) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  // to go to a token by the keyboard may scroll, and what it tells goes with it
  document.addEventListener("scroll", () => (document.activeElement.token && !tip.hidden ? showTip(document.activeElement) : hideTip()), true);
}

// Markdown, as far as models write it in answers: blocks and a few marks, made into elements

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)|(https?:\/\/[^\s<>()（）「」]+[^\s<>()（）「」.,;:!?。，；：！？])/;

function inline(text) {
  const parts = [];
  let rest = text;
  for (let found; (found = INLINE.exec(rest)); rest = rest.slice(found.index + found[0].length)) {
    parts.push(rest.slice(0, found.index));
    const [whole, code, strong, emphasis] = found;
    if (code) parts.push(make("code", {}, code.slice(1, -1)));
    else if (strong) parts.push(make("strong", {}, strong.slice(2, -2)));
    else if (emphasis) parts.push(make("em", {}, emphasis.slice(1, -1)));
    else parts.push(make("a", { href: whole, target: "_blank", rel: "noopener noreferrer" }, whole));
  }
  return [...parts, rest];
}

const lines = (text) => text.split("\n").flatMap((line, number) => [...(number ? [make("br")] : []), ...inline(line)]);

function listOf(block, ordered) {
  const items = block.split(/\n(?=\s*(?:[-*•]|\d+[.)、])\s)/).map((item) => item.replace(/^\s*(?:[-*•]|\d+[.)、])\s+/, ""));
  const start = ordered ? /\d+/.exec(block)[0] : undefined;
  return make(ordered ? "ol" : "ul", { start }, ...items.map((item) => make("li", {}, ...lines(item))));
}

function block(text) {
  const heading = /^(#{1,6})\s+(.*)/.exec(text);
  if (heading && !text.includes("\n")) return [make(heading[1].length < 3 ? "h3" : "h4", {}, ...inline(heading[2]))];
  if (heading) return [...block(text.slice(0, text.indexOf("\n"))), ...block(text.slice(text.indexOf("\n") + 1))];
  if (/^\s*[-*•]\s/.test(text)) return [listOf(text, false)];
  if (/^\s*\d+[.)、]\s/.test(text)) return [listOf(text, true)];
  if (/^>\s?/.test(text)) return [make("blockquote", {}, ...lines(text.replace(/^>\s?/gm, "")))];
  const list = /\n(?=\s*(?:[-*•]|1[.)、])\s)/.exec(text);
  if (list) return [make("p", {}, ...lines(text.slice(0, list.index))), ...block(text.slice(list.index + 1))];
  return [make("p", {}, ...lines(text))];
}

/** A text's elements. */
export function prose(text) {
  return text.split(/(^```[^\n]*\n[\s\S]*?(?:^```\s*$|$(?![\s\S])))/m).flatMap((part) => {
    if (part.startsWith("```")) return [make("pre", {}, make("code", {}, part.replace(/^```[^\n]*\n/, "").replace(/\n?```\s*$/, "")))];
    return part.split(/\n\s*\n/).filter((one) => one.trim()).flatMap((one) => block(one.replace(/^\n+|\s+$/g, "")));
  });
}
