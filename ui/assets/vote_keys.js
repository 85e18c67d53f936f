// The keys 1, 2 and 0 vote for left, right and a tie while the buttons are there and nobody types.
window.addEventListener('keydown', (event) => {
  const verdict = {1: 'left', 2: 'right', 0: 'equal'}[event.key];
  if (!verdict || !element.offsetParent || event.repeat || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest('textarea, select, input:not([type=radio])')) return;
  event.preventDefault();
  window.loratoryPress(element.querySelector(`[data-pick=${verdict}]`));
});
