// Applies the chosen theme before the first paint, so that the page does not flash.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem('tercile-theme');
  } catch {
    // Without storage the system's theme is used.
  }
  const dark = chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
})();
