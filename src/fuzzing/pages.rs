//! Target: the bodies of model servers' answers.

use std::time::{Duration, Instant};

use super::cut;
use crate::produce::Form;
use crate::produce::events::{ExpectedForm, ProviderEvent, ProviderEvents};
use crate::produce::sse::{SseError, SseEvent, SseParser};
use crate::visible;

/// Longer than any wait.
const LATER: Duration = Duration::from_secs(3600);

/// A body produces the same events and the same entries however it is cut.
pub(super) fn events(data: &[u8]) {
    let Some((step, body)) = cut(data) else { return };
    let whole = parsed(body, body.len());
    assert_eq!(whole, parsed(body, step), "in steps of {step}");
    if let Ok((events, _)) = whole {
        let output: usize = events.iter().map(|event| event.data.len() + event.event.len()).sum();
        // A byte that is not UTF-8 becomes a character of three.
        assert!(output <= 3 * body.len(), "{output} bytes of {}", body.len());
    }
    for form in [ExpectedForm::Fixed(Form::Anthropic), ExpectedForm::FirstEvent(Form::OpenAi)] {
        let whole = interpreted(form, body, body.len());
        assert_eq!(whole, interpreted(form, body, step), "in steps of {step}");
    }
}

/// Events, and the reconnection delay.
type Parsed = Result<(Vec<SseEvent>, Option<Duration>), SseError>;

fn parsed(body: &[u8], step: usize) -> Parsed {
    let (mut parser, mut events) = (SseParser::default(), Vec::new());
    for piece in body.chunks(step.max(1)) {
        parser.push(piece)?;
        events.extend(std::iter::from_fn(|| parser.next()));
    }
    events.extend(parser.finish()?);
    Ok((events, parser.retry()))
}

/// The results of the events, and the messages for a body without any: about foreign content, and about no content.
fn interpreted(
    form: ExpectedForm,
    body: &[u8],
    step: usize,
) -> (Vec<ProviderEvent>, Option<String>, Option<String>) {
    let now = Instant::now();
    let (mut events, mut results) = (ProviderEvents::new(form), Vec::new());
    for piece in body.chunks(step.max(1)) {
        events.push(piece, now).expect("the body is short");
        results.extend(std::iter::from_fn(|| events.next()));
    }
    results.extend(events.finish().expect("the body is short"));
    let (foreign, nothing) = (events.foreign(now + LATER), events.came_instead());
    assert_eq!(foreign.is_some(), events.has_foreign() && events.count() == 0);
    assert_eq!(nothing.is_none(), events.count() > 0);
    for words in [&foreign, &nothing].into_iter().flatten() {
        assert!(!words.contains(visible::is_control) && words.len() <= 4096, "{words}");
    }
    (results, foreign, nothing)
}
