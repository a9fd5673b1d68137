// What models that judge say, as elements.

import { bars, make, percent } from "./view.js";
import { t } from "./words.js";

/** A text with its masks filled, and the candidates of each. */
export function filled(text, result) {
  const parts = text.split("[MASK]");
  const line = make("p", {});
  let rest = result.text;
  parts.forEach((part, number) => {
    const at = part ? rest.indexOf(part.trim()) : rest.length;
    if (number && at >= 0) line.append(make("mark", {}, rest.slice(0, part ? at : rest.length).trim()));
    if (at >= 0 && part) {
      line.append(number && /^\s/.test(part) ? " " : "", part.trim(), /\s$/.test(part) ? " " : "");
      rest = rest.slice(at + part.trim().length);
    }
  });
  const several = result.masks.length > 1;
  const charts = result.masks.map((mask, number) => bars(mask.map((one) => [one.text.trim() || one.text, one.probability]), several ? t("mask", { number: number + 1 }) : null));
  return [line, ...charts];
}

/** A text with the names in it marked. */
export function named(text, entities) {
  const line = make("p", { class: "plain" }), letters = [...text];
  let at = 0;
  for (const entity of entities) {
    const label = make("small", {}, ` ${entity.label}`);
    line.append(letters.slice(at, entity.start).join(""), make("mark", { title: `${entity.label} ${percent(entity.score)}` }, entity.text, label));
    at = entity.end;
  }
  line.append(letters.slice(at).join(""));
  return line;
}

/** The cosines of texts' vectors. */
export function likeness(texts, vectors) {
  const norms = vectors.map((vector) => Math.hypot(...vector));
  const cosine = (i, j) => vectors[i].reduce((sum, value, k) => sum + value * vectors[j][k], 0) / (norms[i] * norms[j]);
  const rows = texts.map((text, i) =>
    make("tr", {}, make("th", {}, `${i + 1}  ${text}`), ...texts.map((_, j) => make("td", { "--share": Math.max(0, 100 * cosine(i, j)) }, cosine(i, j).toFixed(2).replace("-", "−")))),
  );
  const head = make("tr", {}, make("th", {}), ...texts.map((_, j) => make("th", {}, `${j + 1}`)));
  return make("div", { class: "table" }, make("table", {}, head, ...rows));
}
