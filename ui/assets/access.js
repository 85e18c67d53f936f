// What Gradio 6.31 leaves out for people who use a keyboard or a screen reader: landmarks, names that are labels and not
// labels with all their help, a name of each group of choices, and arrow keys in tabs.
const LANDMARKS = {side: ['region', 'Your draft'], 'next-step': ['region', 'Next step']};
let named = 0;

const arrange = () => {
  // Gradio puts everything into one `main`; a banner within it is none.
  const [main, header] = [document.querySelector('main'), document.getElementById('header')];
  if (main && header && main.contains(header)) main.before(header);
  for (const [id, [role, label]] of Object.entries(LANDMARKS)) {
    const place = document.getElementById(id);
    if (!place || place.role) continue;
    place.role = role;
    place.ariaLabel = label;
  }
  for (const list of document.querySelectorAll('[role=tablist]')) {
    for (const tab of list.querySelectorAll('[role=tab]')) tab.tabIndex = tab.ariaSelected === 'true' ? 0 : -1;
  }
  for (const panel of document.querySelectorAll('.tabitem:not([aria-label])')) {
    const selected = document.querySelector('#tabs [role=tab][aria-selected=true]');
    if (selected && panel.offsetParent) panel.ariaLabel = selected.textContent;
  }
  for (const info of document.querySelectorAll('.info-text:not([id])')) {
    info.id = `info-${named += 1}`;
    for (const box of info.closest('.block').querySelectorAll('input, textarea')) box.setAttribute('aria-describedby', info.id);
  }
  for (const label of document.querySelectorAll('[data-testid=block-info]:not([id])')) {
    label.id = `label-${named += 1}`;
    const group = label.closest('fieldset, label');
    const box = group?.matches('fieldset') ? group : group?.querySelector('input:not([aria-label]), textarea:not([aria-label])');
    box?.setAttribute('aria-labelledby', label.id);
  }
};

let isAwaited = false;
const arrangeSoon = () => {
  if (isAwaited) return;
  isAwaited = true;
  requestAnimationFrame(() => { isAwaited = false; arrange(); });
};
new MutationObserver(arrangeSoon).observe(document.body, {childList: true, subtree: true, attributeFilter: ['aria-selected']});
arrange();

const STEPS = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
document.addEventListener('keydown', (event) => {
  const [step, tab] = [STEPS[event.key], event.target.closest?.('[role=tab]')];
  if (!tab || !step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const tabs = [...tab.parentElement.querySelectorAll('[role=tab]')];
  const to = tabs.indexOf(tab) + step;
  const next = Number.isFinite(step) ? tabs.at(to % tabs.length) : tabs.at(step < 0 ? 0 : -1);
  next.focus();
  next.click();
});
