//! The watcher's message to `main` that the daemon has to stop.

use std::sync::Arc;

use parking_lot::Mutex;

/// A message to `main`, which it wakes. Clones share it.
#[derive(Clone, Debug)]
pub struct Fatal {
    message: Arc<Mutex<Option<String>>>,
    waker: Arc<mio::Waker>,
}

impl Fatal {
    /// No message yet; `waker` wakes main.
    #[must_use]
    pub fn new(waker: Arc<mio::Waker>) -> Self {
        Self { message: Arc::default(), waker }
    }

    /// Reports why the daemon has to stop.
    pub(super) fn report(&self, message: String) {
        self.message.lock().get_or_insert(message);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "main could not be woken");
        }
    }

    /// Takes the message, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<String> {
        self.message.lock().take()
    }
}
