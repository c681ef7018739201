// Requests to the API, with a key if required, and an event stream that reconnects.

import { byId } from './page.js';
import { t } from './i18n.js';

const KEPT = 'tercile-key';
/** Milliseconds without an event after which the connection counts as lost; the server sends one every five seconds. */
const SILENCE = 15_000;
const LONGEST_WAIT = 15_000;
/** The path under which a proxy shows the server. */
export const PREFIX = document.documentElement.dataset.prefix ?? '';

let key = sessionStorage.getItem(KEPT);
let asking = null;

/** Error response of the server. */
export class Problem extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? t('answered', { status }));
    this.status = status;
    this.field = problem?.field;
  }
}

/** Asks for a key; concurrent requests wait for the same answer. The key is kept for the lifetime of the tab. */
function askForKey() {
  asking ??= new Promise((given) => {
    const [dialog, form, input] = [byId('key'), byId('key-form'), byId('key-input')];
    byId('key-why').textContent = t(key ? 'key_refused' : 'key_why');
    const refuse = (event) => event.preventDefault();
    dialog.addEventListener('cancel', refuse);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      key = input.value.trim();
      sessionStorage.setItem(KEPT, key);
      input.value = '';
      dialog.removeEventListener('cancel', refuse);
      dialog.close();
      asking = null;
      given();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function ask(path, options = {}) {
  for (;;) {
    const sent = key;
    const headers = { ...options.headers, ...(sent ? { Authorization: `Bearer ${sent}` } : {}) };
    const response = await fetch(PREFIX + path, { cache: 'no-store', ...options, headers });
    if (response.ok) return response;
    if (response.status !== 401) throw new Problem(response.status, await response.json().catch(() => null));
    // Another request may have obtained a key meanwhile.
    if (sent === key) await askForKey();
  }
}

export const get = async (path) => (await ask(path)).json();

export const post = async (path, body) =>
  (await ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })).json();

export const hasKey = () => Boolean(key);

/** Calls `heard` for every event of a stream and reconnects with backoff; `lost` is called on disconnection. */
export async function follow(path, heard, lost) {
  for (let wait = 1000; ; wait = Math.min(wait * 2, LONGEST_WAIT)) {
    const cut = new AbortController();
    let silence;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => cut.abort(), SILENCE);
    };
    try {
      const response = await ask(path, { headers: { Accept: 'text/event-stream' }, signal: cut.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (alive(); ;) {
        const { value, done } = await reader.read();
        if (done) break;
        alive();
        const events = (rest + value).split('\n\n');
        rest = events.pop();
        for (const event of events) {
          const data = event.split('\n').filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart());
          if (data.length > 0) heard(JSON.parse(data.join('\n')));
          wait = 500;
        }
      }
    } catch (error) {
      if (error instanceof Problem) console.warn(error.message);
    }
    clearTimeout(silence);
    cut.abort();
    lost();
    await new Promise((done) => { setTimeout(done, wait * (0.8 + 0.4 * Math.random())); });
  }
}
