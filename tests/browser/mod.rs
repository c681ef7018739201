//! Drives a real Chromium directly with the DevTools protocol over a pipe.
//!
//! `TERCILE_CHROMIUM` names the program; the default is `chromium`. Screenshots are saved to the directory
//! `TERCILE_SCREENSHOTS`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Timeout of each browser operation.
const PATIENCE: Duration = Duration::from_secs(60);

/// One page in its own browser with a new profile.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    calls: u64,
    /// True if the last opened page is loaded.
    loaded: bool,
    /// Errors, warnings and policy violations reported by the page.
    pub complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// `None` if there is no Chromium; the reason is printed.
    pub fn start() -> Option<Self> {
        let program = std::env::var_os("TERCILE_CHROMIUM").unwrap_or_else(|| "chromium".into());
        if !Command::new(&program).arg("--version").stderr(Stdio::null()).output().is_ok_and(|o| o.status.success()) {
            eprintln!("skipped: no {}; TERCILE_CHROMIUM may name a Chromium", program.display());
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // Chromium reads commands from descriptor 3 and answers on 4. No sandbox, because containers often forbid new
        // namespaces.
        let script = "exec \"$0\" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --lang=en \
                      --force-color-profile=srgb --remote-debugging-pipe --user-data-dir=\"$1\" 3<&0 4>&1 0</dev/null 1>&2";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(&program)
            .arg(profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (heard, from) = channel();
        std::thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                if answers.read_until(0, &mut message).unwrap_or(0) == 0 {
                    return;
                }
                let message = serde_json::from_slice(message.strip_suffix(&[0]).unwrap_or(&message)).unwrap();
                if heard.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser =
            Self { child, to, from, session: None, calls: 0, loaded: false, complaints: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Sends a command and returns its answer.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let heard = self.from.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{method}: {e}"));
            if heard["id"] == id {
                assert!(heard["error"].is_null(), "{method}: {heard}");
                return heard["result"].clone();
            }
            self.hear(&heard);
        }
    }

    fn hear(&mut self, event: &Value) {
        let params = &event["params"];
        let complaint = match event["method"].as_str() {
            Some("Page.loadEventFired") => {
                self.loaded = true;
                return;
            }
            Some("Runtime.exceptionThrown") => params["exceptionDetails"].to_string(),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => params["entry"].to_string(),
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => params["args"].to_string(),
            _ => return,
        };
        self.complaints.push(complaint);
    }

    /// Sets the window size in CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Opens an address and waits until the page is loaded; until then the previous page may answer.
    pub fn open(&mut self, url: &str) {
        self.loaded = false;
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{opened}");
        while !self.loaded {
            let heard = self.from.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{url} is not loaded: {e}"));
            self.hear(&heard);
        }
    }

    /// Evaluates a JavaScript expression.
    pub fn run(&mut self, script: &str) -> Value {
        let asked = json!({"expression": script, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let ran = self.call("Runtime.evaluate", asked);
        assert!(ran["exceptionDetails"].is_null(), "{script}: {}", ran["exceptionDetails"]);
        ran["result"]["value"].clone()
    }

    /// Waits until a JavaScript expression is true.
    pub fn until(&mut self, script: &str) {
        let start = Instant::now();
        while self.run(&format!("Boolean({script})")) != true {
            let text = |browser: &mut Self| browser.run("document.body.innerText");
            assert!(start.elapsed() < PATIENCE, "{script} did not come true: {}", text(self));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The text of the first matching element.
    pub fn text(&mut self, selector: &str) -> String {
        let script = format!("document.querySelector({})?.textContent ?? null", json!(selector));
        self.run(&script).as_str().unwrap_or_else(|| panic!("there is no {selector}")).to_owned()
    }

    pub fn click(&mut self, selector: &str) {
        self.run(&format!("document.querySelector({}).click()", json!(selector)));
    }

    /// Types text into a field like a keyboard.
    pub fn fill(&mut self, selector: &str, text: &str) {
        self.run(&format!("document.querySelector({}).focus(), document.activeElement.select()", json!(selector)));
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Saves the whole page as PNG, if screenshots are enabled.
    pub fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("TERCILE_SCREENSHOTS").map(PathBuf::from) else { return };
        std::fs::create_dir_all(&dir).unwrap();
        let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
        let png = base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(dir.join(format!("{name}.png")), png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
