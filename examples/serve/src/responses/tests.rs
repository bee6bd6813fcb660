//! Requests in, events out: what a client of the Responses API sends and sees.

mod events;
mod requests;
