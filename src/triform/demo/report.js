// A value under the finger: browsers show an SVG title to a mouse only.
const tip = document.getElementById("tip");
document.addEventListener("click", (event) => {
  const title = event.target.closest("rect, circle")?.querySelector("title");
  tip.hidden = !title;
  if (!title) return;
  tip.textContent = title.textContent;
  tip.style.left = Math.max(4, Math.min(event.clientX + 8, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 10) + "px";
});
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
