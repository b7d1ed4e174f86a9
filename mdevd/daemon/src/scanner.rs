//! The scan thread. Reading `/sys` and `/proc` can block for ever when a driver misbehaves, so none of it happens on the engine's
//! thread: one plain thread does it, a job at a time, and one that does not come back in time is left behind for a new one.

use std::cell::RefCell;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};

/// How long one job (one parent, one pass over `/proc`) may take.
pub const JOB_DEADLINE: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// Runs blocking reads away from the engine.
#[derive(Debug)]
pub struct Scanner {
    /// One job at a time, so that a deadline begins when its job does and a hang takes no other job with it.
    turn: Mutex<()>,
    thread: RefCell<mpsc::Sender<Job>>,
}

/// A job that has not come back in time. Its thread still waits.
#[derive(Debug)]
pub struct Hung(oneshot::Receiver<()>);

impl Hung {
    /// Waits until the read has come back after all, however long that takes.
    pub async fn ended(self) {
        // An error means that the thread is gone, and then nothing blocks any more either.
        let _ = self.0.await;
    }
}

impl Scanner {
    /// Starts the thread.
    pub fn new() -> Self {
        Self { turn: Mutex::new(()), thread: RefCell::new(spawn()) }
    }

    /// Runs `job` on the scan thread.
    ///
    /// # Errors
    /// [`Hung`] when it has not ended after [`JOB_DEADLINE`].
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Hung> {
        let _turn = self.turn.lock().await;
        let (result_to, mut result) = oneshot::channel();
        let (ended_to, ended) = oneshot::channel();
        let boxed: Job = Box::new(move || {
            let _ = result_to.send(job());
            let _ = ended_to.send(());
        });
        // A thread that died (a panic in a job) is replaced like one that hangs.
        if let Err(mpsc::SendError(boxed)) = self.send(boxed) {
            self.thread.replace(spawn());
            let _ = self.send(boxed);
        }
        match tokio::time::timeout(JOB_DEADLINE, &mut result).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) | Err(_) => {
                self.thread.replace(spawn());
                Err(Hung(ended))
            }
        }
    }

    fn send(&self, job: Job) -> Result<(), mpsc::SendError<Job>> {
        self.thread.borrow().send(job)
    }
}

fn spawn() -> mpsc::Sender<Job> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let thread = std::thread::Builder::new().name("scan".into()).spawn(move || {
        while let Ok(job) = jobs.recv() {
            job();
        }
    });
    if let Err(error) = thread {
        tracing::error!("cannot start the scan thread: {error}");
    }
    sender
}
