// Copies what a button's `data-copy` holds, or the text next to a button of `ui.views.html.copyable`.
element.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const shown = button.parentElement.querySelector('pre') ?? button.closest('.answer').querySelector('.text');
  try { await navigator.clipboard.writeText(button.dataset.copy || shown.textContent); button.textContent = 'Copied'; }
  catch { getSelection().selectAllChildren(shown); button.textContent = 'Selected'; }
  setTimeout(() => { button.textContent = 'Copy'; }, 1600);
});
