//! Keeps the guest's clock.
//!
//! The monitor tells the guest the time after the host's clock was set or the host slept, and now and then, since the guest
//! does not follow what NTP does to the host.

use std::rc::Rc;

use super::Vm;
use super::agent_client::Agent;
use crate::log::{self, Level};

/// Keeps the guest's clock, for ever. A clock that cannot be kept is logged, and no reason to end the guest.
pub async fn keep(vm: Rc<Vm>, agent: Agent) {
    let timer = match &vm.clock {
        Ok(timer) => timer,
        Err(error) => return log::warning(&format!("the guest's clock is not kept: {error:#}")),
    };
    while timer.due().await.is_ok() {
        if let Err(error) = vm.ask(agent.configure(0, &[])).await {
            log::repeated(Level::Debug, &format!("the guest's clock: {error:#}"));
        }
    }
}
