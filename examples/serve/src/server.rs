//! Listening, and how it ends.

use crate::{App, app};
use axum::serve::ListenerExt;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How long connections have, once the engine has stopped, to take what was written to them.
const DRAIN: Duration = Duration::from_secs(5);

/// Answers what comes to `listener` until `stop`. From then on no connection is taken any more, running
/// answers have the time `within` to end, and those that do not are cut off.
///
/// # Errors
/// Of the listener.
pub async fn serve(
    listener: TcpListener,
    app: App,
    stop: impl Future<Output = ()> + Send + 'static,
    within: Duration,
) -> io::Result<()> {
    // A token is a small packet, which would wait for the one before it to be acknowledged.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let (stopping, mut stopped) = watch::channel(false);
    let begin_to_stop = async move {
        stop.await;
        // Whoever waits for it is gone only if the server is.
        let _ = stopping.send(true);
    };
    let router = app::router(app.clone());
    let server = axum::serve(listener, router).with_graceful_shutdown(begin_to_stop);
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    // Requests that come on open connections are refused from here on, for the engine is.
    let stop_engine = tokio::task::spawn_blocking(move || match app.engine() {
        Ok(engine) => engine.shutdown(within).map_err(io::Error::other),
        Err(_) => Ok(()),
    });
    let both = async {
        let (server, engine) = tokio::join!(server, stop_engine);
        server.and(engine.unwrap_or_else(|panic| Err(io::Error::other(panic))))
    };
    // A client that neither reads nor goes away does not keep the server.
    tokio::time::timeout(within + DRAIN, both).await.unwrap_or(Ok(()))
}
