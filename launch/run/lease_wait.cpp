#include "launch/run/lease_wait.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "runtime/core/error.h"

namespace emox {

std::unique_ptr<RunLease> take_lease_within(const LeaseWait& wait, const std::filesystem::path& directory,
                                            const std::vector<std::string>& command, LeaseTiming timing) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kLook{200};
  constexpr std::chrono::seconds kAsk{1};  // every attempt writes a file
  const auto begin = Clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  for (bool said = false;; said = true) {
    try {
      return std::make_unique<RunLease>(directory, LeaseHolder::self(command), timing);
    } catch (const TryAgainError& e) {
      if (wait.seconds <= 0) throw;
      if (!said && wait.say)
        wait.say(fmt::format("{}. Waiting for it, {:g} s at most (run.wait_s)", e.message(), wait.seconds));
      for (const auto next = Clock::now() + kAsk; Clock::now() < next;) {
        if (passed() >= wait.seconds || (wait.go_on && !wait.go_on()))
          fail<TryAgainError>("{}. Waited {:.0f} s for it (run.wait_s = {:g})", e.message(), passed(), wait.seconds);
        std::this_thread::sleep_for(kLook);
      }
    }
  }
}

}  // namespace emox
