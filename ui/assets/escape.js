// Escape closes the panel that this is in, by its first button, unless something is being typed.
const close = (event) => {
  if (!element.isConnected) document.removeEventListener('keydown', close);
  else if (event.key === 'Escape' && element.parentElement.offsetParent && !event.target.closest('input, textarea')) {
    window.loratoryPress(element.closest('.column').querySelector('button'));
  }
};
document.addEventListener('keydown', close);
