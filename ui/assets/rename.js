// A click on the title, or the button next to it, puts a box in front of it: Enter saves, Escape and leaving the box cancel.
// It is outside of what polls replace.
element.addEventListener('click', (event) => {
  const button = element.querySelector('button.rename');
  if (!button || !event.target.closest('h2, button.rename')) return;
  const {run, name} = button.dataset;
  const box = Object.assign(document.createElement('input'), {className: 'rename', value: name, maxLength: 120, ariaLabel: 'Name of the run'});
  let isOpen = true;
  const end = (saves) => {
    if (!isOpen) return;  // removing the box leaves it
    isOpen = false;
    box.remove();
    // Sending it takes longer than a frame.
    if (saves && box.value.trim() !== name) requestAnimationFrame(() => setTimeout(pick, 0, `name:${run}:${box.value}`));
  };
  box.addEventListener('keydown', (typed) => {
    if (typed.isComposing || !['Enter', 'Escape'].includes(typed.key)) return;
    typed.preventDefault();  // Enter would press the button that gets the focus
    end(typed.key === 'Enter');
    element.querySelector('button.rename')?.focus();
  });
  box.addEventListener('blur', () => end(false));
  element.before(box);
  box.select();
});
