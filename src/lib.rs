//! llm-bridge delivers LLM tokens from Redis Streams to WebSocket and SSE clients.
pub mod cli;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod event;
pub mod ingest;
pub mod observe;
pub mod produce;
pub mod queue;
pub mod redis;
pub mod security;
pub mod stop;
pub mod thread;
pub mod transform;
pub mod watcher;
pub mod web;
