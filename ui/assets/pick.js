// Rows carry data-pick; Enter and Space work like a click. Event data arrives as `event.pick`.
const send = (target) => {
  const row = target.closest('[data-pick]');
  if (row && element.contains(row)) trigger('click', {pick: row.dataset.pick});
};
element.addEventListener('click', (event) => { if (!event.target.closest('a')) send(event.target); });
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); send(event.target); }
});
