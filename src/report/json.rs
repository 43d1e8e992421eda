//! Events for programs: one JSON object a line. `docs/progress.md` is the schema; a new version may add events and
//! members, and changes none.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::hide::hidden;
use crate::observe::{Event, Observer};

/// Bytes of one download or upload that are told together: events by the network's packet would drown the others.
const STRIDE: u64 = 1 << 20;

/// Writes events as JSON.
#[derive(Debug)]
pub struct Json<W: Write + Send> {
    state: Mutex<State<W>>,
}

#[derive(Debug)]
struct State<W> {
    out: W,
    untold: BTreeMap<(&'static str, String), u64>,
}

impl<W: Write + Send> Json<W> {
    /// JSON lines to `out`.
    pub fn new(out: W) -> Json<W> {
        Json { state: Mutex::new(State { out, untold: BTreeMap::new() }) }
    }
}

impl<W: Write> State<W> {
    fn write(&mut self, value: &Value) {
        let _ = self.out.write_all(format!("{value}\n").as_bytes());
    }

    fn advance(&mut self, event: &'static str, name: &str, bytes: u64) {
        let key = (event, name.to_owned());
        let untold = self.untold.remove(&key).unwrap_or(0) + bytes;
        if untold >= STRIDE {
            self.write(&json!({ "event": event, "name": name, "bytes": untold }));
        } else {
            self.untold.insert(key, untold);
        }
    }

    fn settle(&mut self, event: &'static str, name: &str) {
        if let Some(bytes) = self.untold.remove(&(event, name.to_owned())) {
            self.write(&json!({ "event": event, "name": name, "bytes": bytes }));
        }
    }
}

impl<W: Write + Send> Observer for Json<W> {
    fn on(&self, event: Event<'_>) {
        let Ok(mut state) = self.state.lock() else { return };
        match event {
            Event::DownloadAdvanced { name, bytes } => return state.advance("download-advanced", name, bytes),
            Event::UploadAdvanced { name, bytes } => return state.advance("upload-advanced", name, bytes),
            Event::DownloadFinished { name } => state.settle("download-advanced", name),
            Event::Uploaded { name } => state.settle("upload-advanced", name),
            _ => {}
        }
        state.write(&object(&event));
    }
}

fn object(event: &Event<'_>) -> Value {
    match event {
        Event::DownloadStarted { name, size } => json!({ "event": "download-started", "name": name, "size": size }),
        Event::DownloadAdvanced { name, bytes } => {
            json!({ "event": "download-advanced", "name": name, "bytes": bytes })
        }
        Event::DownloadFinished { name } => json!({ "event": "download-finished", "name": name }),
        Event::ConversionStarted { name } => json!({ "event": "conversion-started", "name": name }),
        Event::ByteCode { name, compiled, taken } => {
            json!({ "event": "byte-code", "name": name, "compiled": compiled, "taken": taken })
        }
        Event::ConversionFinished { name } => json!({ "event": "conversion-finished", "name": name }),
        Event::LayerStarted { label } => json!({ "event": "layer-started", "label": label }),
        Event::LayerFinished { label, digest, size } => {
            json!({ "event": "layer-finished", "label": label, "digest": digest, "size": size })
        }
        Event::ImageFinished { name, digest, cached } => {
            json!({ "event": "image-finished", "name": name, "digest": digest, "cached": cached })
        }
        Event::StepStarted { label } => json!({ "event": "step-started", "label": label }),
        Event::StepOutput { label, line } => json!({ "event": "step-output", "label": label, "line": line }),
        Event::StepFinished { label } => json!({ "event": "step-finished", "label": label }),
        Event::UploadStarted { name, size } => json!({ "event": "upload-started", "name": name, "size": size }),
        Event::UploadAdvanced { name, bytes } => json!({ "event": "upload-advanced", "name": name, "bytes": bytes }),
        Event::Uploaded { name } => json!({ "event": "uploaded", "name": name }),
        Event::Mounted { name, from } => json!({ "event": "mounted", "name": name, "from": from }),
        Event::Present { name } => json!({ "event": "present", "name": name }),
        Event::Tagged { reference, digest } => json!({ "event": "tagged", "reference": reference, "digest": digest }),
        Event::Warning(text) => json!({ "event": "warning", "text": hidden(text) }),
        Event::Note(text) => json!({ "event": "note", "text": hidden(text) }),
    }
}
