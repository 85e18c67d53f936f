// What Gradio 6.31 leaves out for people who use a keyboard or a screen reader: landmarks, names that are labels and not
// labels with all their help, a name of each group of choices, and arrow keys in tabs. And what the browser's tab shows.
const LANDMARKS = {side: ['region', 'Your draft'], 'next-step': ['region', 'Next step']};
let named = 0;

const arrange = () => {
  // Gradio puts everything into one `main`; a banner within it is none. Our rules reach what is within a `.contain`.
  const [main, header] = [document.querySelector('main'), document.getElementById('header')];
  if (main && header && main.contains(header)) {
    const top = document.createElement('div');
    top.className = 'contain';
    main.before(top);
    top.append(header);
  }
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

// The run that is followed, else the newest active one; one that ended out of sight, until the page is looked at.
let endedAt = null;
let missed = '';
const entitle = () => {
  const followed = document.querySelector('#run-heading .tab-title');
  const shown = followed?.parentElement.offsetParent ? followed : document.querySelector('#header .tab-title.active');
  const ended = document.querySelector('#header .tab-title.ended')?.dataset;
  const at = Number(ended?.at ?? 0);
  if (endedAt !== null && at > endedAt) {
    if (document.hidden) missed = ended.title;
    if (window.Notification?.permission === 'granted' && localStorage.getItem('loratory-notify') === 'on') {
      const note = new Notification(ended.name, {body: ended.title, tag: `${ended.run}-${ended.at}`});
      note.onclick = () => { window.focus(); note.close(); };
    }
  }
  if (document.getElementById('tab-titles')) endedAt = Math.max(at, endedAt ?? 0);
  const words = missed || shown?.dataset.title;
  const title = words ? `${words} · Loratory` : 'Loratory';
  if (document.title !== title) document.title = title;
};
document.addEventListener('visibilitychange', () => { if (!document.hidden) { missed = ''; entitle(); } });

let isAwaited = false;
const arrangeSoon = () => {
  if (isAwaited) return;
  isAwaited = true;
  // A page that is out of sight draws no frames.
  (document.hidden ? setTimeout : requestAnimationFrame)(() => { isAwaited = false; arrange(); entitle(); });
};
new MutationObserver(arrangeSoon).observe(document.body, {childList: true, subtree: true, attributeFilter: ['aria-selected', 'data-title', 'data-at']});
arrange();
entitle();

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
