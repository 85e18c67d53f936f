// Keeps the newest lines in sight until a person scrolls up to read; Gradio's `autoscroll` does nothing for HTML. A fold
// that opens makes room without a change of its content.
element.classList.add('follows-end');
let atEnd = true;
element.addEventListener('scroll', () => {
  if (element.clientHeight) atEnd = element.scrollTop + element.clientHeight > element.scrollHeight - 8;
});
const settle = () => { if (atEnd) element.scrollTop = element.scrollHeight; };
new MutationObserver(settle).observe(element, {childList: true, subtree: true, characterData: true});
new ResizeObserver(settle).observe(element);
