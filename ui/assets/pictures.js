// Images for the next question: its button, paste and drop fill the upload of the page, where the model takes images.
const upload = () => document.querySelector('#chat-files input[type=file]');
const takesImages = () => document.querySelector('#suggestions .add-picture') !== null;
const isHere = (event) => event.target.closest?.('#composer, #suggestions, #transcript') && takesImages();
const add = (files) => {
  const chosen = new DataTransfer();
  for (const file of files) if (file.type.startsWith('image/')) chosen.items.add(file);
  if (!chosen.files.length || !upload()) return false;
  upload().files = chosen.files;
  return upload().dispatchEvent(new Event('change', {bubbles: true}));
};
document.addEventListener('click', (event) => {
  if (!event.target.closest?.('.add-picture') || !upload()) return;
  const [box, types] = [upload(), upload().accept];
  box.accept = 'image/*';  // with nothing else, a phone offers its camera
  box.click();
  setTimeout(() => { box.accept = types; }, 1000);
});
// Text from a word processor brings a picture of itself.
document.addEventListener('paste', (event) => {
  if (isHere(event) && !event.clipboardData.getData('text') && add(event.clipboardData.files)) event.preventDefault();
});
document.addEventListener('dragover', (event) => {
  if (isHere(event) && event.dataTransfer.types.includes('Files')) event.preventDefault();
});
document.addEventListener('drop', (event) => {
  if (isHere(event) && add(event.dataTransfer.files)) event.preventDefault();
});
