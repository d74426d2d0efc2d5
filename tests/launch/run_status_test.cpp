// status.json and `emox status`, RUN/STOP, and what run.json says of the job.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/run/job_facts.h"
#include "launch/run/run_status.h"
#include "launch/run/watchdog_limit.h"
#include "parallel/comm/communicator.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;

/// A variable of the environment for the life of the object.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

TEST(RunStatus, ComesBackAsItWasWritten) {
  RunStatus s;
  s.state = RunState::Stopped, s.step = 7, s.steps = 60, s.saved_step = 5, s.reason = "by SIGTERM",
  s.signal = "SIGTERM";
  s.for_good = true, s.job = "26_1", s.restarts = 2, s.host = "node\xff", s.pid = 71, s.save_s = 1.5;
  const auto back = RunStatus::from_text(s.to_json().dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->state, RunState::Stopped);
  EXPECT_EQ(back->step, 7);
  EXPECT_EQ(back->reason, "by SIGTERM");
  EXPECT_TRUE(back->for_good);
  EXPECT_EQ(back->restarts, 2);
  EXPECT_EQ(back->save_s, 1.5);
  EXPECT_EQ(back->step_s, 0);
  for (const char* wrong : {"", "{", "[]", "{\"state\":\"running\"}", "{\"state\":\"lost\",\"step\":1}"})
    EXPECT_FALSE(RunStatus::from_text(wrong)) << wrong;
}

TEST(RunStatus, AnotherRankFailsWithoutWritingOverAnEnd) {
  const test::TemporaryDirectory directory;
  Log log(0);
  StatusFile first(directory.path(), 0, log), second(directory.path(), 1, log);
  second.failed("nobody has begun");
  EXPECT_FALSE(RunStatus::read(directory.path()));
  first.status.step = 3, first.status.steps = 9;
  first.write();
  second.failed("the disk is full");
  auto s = RunStatus::read(directory.path());
  ASSERT_TRUE(s);
  EXPECT_EQ(s->state, RunState::Failed);
  EXPECT_EQ(s->step, 3);
  EXPECT_EQ(s->reason, "the disk is full");
  second.failed("and then another thing");
  EXPECT_EQ(RunStatus::read(directory.path())->reason, "the disk is full");
  for (const auto& entry : fs::directory_iterator(directory.path())) EXPECT_EQ(entry.path().filename(), "status.json");
}

TEST(JobFacts, AnElementOfAnArrayIsNotTheArray) {
  const Variable id("SLURM_JOB_ID", "27");
  EXPECT_EQ(slurm_job(), "27");
  const Variable array("SLURM_ARRAY_JOB_ID", "26"), element("SLURM_ARRAY_TASK_ID", "1");
  EXPECT_EQ(slurm_job(), "26_1");
  EXPECT_EQ(restarts_so_far(), 0);
  const Variable slurm("SLURM_RESTART_COUNT", "3");
  EXPECT_EQ(restarts_so_far(), 3);
  const Variable own("EMOX_RESTARTS", "5");
  EXPECT_EQ(restarts_so_far(), 5);
}

TEST(JobFacts, TheEnvironmentIsListedWithoutSecrets) {
  const Variable a("NCCL_DEBUG", "INFO"), b("SLURM_JWT", "s1"), c("OMPI_MCA_some_token", "s2"), d("HOME_KEY", "s3"),
      e("OMPI_MCA_orte_precondition_transports", "s4");
  const auto found = job_environment();
  EXPECT_EQ(found.at("NCCL_DEBUG"), "INFO");
  for (const char* secret : {"s1", "s2", "s3", "s4"}) EXPECT_EQ(found.dump().find(secret), std::string::npos);
}

TEST(WatchdogLimit, FollowsTheStepsUnlessItIsGiven) {
  const auto comm = make_self_communicator();
  WatchdogLimit limit(*comm, 0);
  EXPECT_EQ(limit.now(), 600);
  limit.measured(100);  // the first step connects ranks
  limit.measured(0.1);
  limit.measured(0.1);
  EXPECT_EQ(limit.now(), 600);
  limit.measured(0.2);
  EXPECT_EQ(limit.now(), 60);
  limit.measured(30);
  EXPECT_EQ(limit.now(), 600);
  limit.measured(1);
  EXPECT_EQ(limit.now(), 600);  // the longest counts
}

class StatusOfRuns : public test::TinyProgram {
 protected:
  StatusOfRuns() {
    recipe_.train.steps = 6;
    write();
  }
  nlohmann::json status() const { return json_of("status " + run().string()).at("runs").at(0); }
};

TEST_F(StatusOfRuns, SaysHowARunEnded) {
  expect(emox("status " + run().string()), 2, {"is no run", "there is no such directory"});
  const Variable job("SLURM_JOB_ID", "71"), restart("SLURM_RESTART_COUNT", "2");
  expect(train("--run.stop_after_step=2"), 0, {});
  auto s = status();
  EXPECT_EQ(s.at("state"), "stopped");
  EXPECT_EQ(s.at("step"), 2);
  EXPECT_EQ(s.at("steps"), 6);
  EXPECT_EQ(s.at("saved_step"), 2);
  EXPECT_EQ(s.at("reason"), "run.stop_after_step = 2");
  EXPECT_EQ(s.at("job"), "71");
  EXPECT_EQ(s.at("restarts"), 2);
  EXPECT_GT(s.at("save_s"), 0);
  expect(emox("status " + run().string()), 0, {"stopped", "2/6", "71", "run.stop_after_step = 2"});

  // A refused command is not how the run ended.
  expect(train("--train.learning_rate=0.5"), 2, {"train.learning_rate"});
  EXPECT_EQ(status().at("state"), "stopped");

  expect(train(""), 0, {});
  s = status();
  EXPECT_EQ(s.at("state"), "finished");
  EXPECT_EQ(s.at("step"), 6);
  EXPECT_EQ(s.at("reason"), "");
  expect(train(""), 0, {"nothing to do"});
  EXPECT_EQ(status().at("state"), "finished");

  const auto jobs = nlohmann::json::parse(text(run() / "run.json"));
  EXPECT_EQ(jobs.at(0).at("job"), "71");
  EXPECT_EQ(jobs.at(0).at("restarts"), 2);
  EXPECT_EQ(jobs.at(0).at("environment").at("SLURM_JOB_ID"), "71");
  EXPECT_EQ(jobs.at(0).at("nodes").at(0).at("ranks"), nlohmann::json::array({0}));
  EXPECT_NE(jobs.at(0).at("nodes").at(0).at("cores").at(0), "");
  for (const char* library : {"mpi", "hdf5", "onednn"})
    EXPECT_NE(jobs.at(0).at("libraries").at(library), "") << library;
}

TEST_F(StatusOfRuns, AFileEndsTheRunForGood) {
  recipe_.train.steps = 1000000;
  write();
  const std::string go = "OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_, stop = (run() / "STOP").string();
  const CommandResult r =
      test::run_command(go + "& until [[ $(wc -l <" + (run() / "metrics.jsonl").string() +
                        ") -ge 3 ]]; do sleep 0.02; done 2>/dev/null; " EMOX_BINARY " status " + run().string() +
                        "; touch " + stop + "; wait $!; echo code $?; " + go + "; echo again $?");
  expect(r, 0, {"running", "stopped by " + stop + " after step", "code 0", "again 0", "with nothing new to save"});
  const auto s = status();
  EXPECT_EQ(s.at("state"), "stopped");
  EXPECT_EQ(s.at("for_good"), true);
  EXPECT_EQ(s.at("signal"), "");
  fs::remove(stop);
  expect(train("--run.stop_after_step=" + std::to_string(s.at("step").get<int>() + 1)), 0, {});
  EXPECT_EQ(status().at("for_good"), false);
}

TEST_F(StatusOfRuns, NobodyIsThereWhoStillSaysSo) {
  recipe_.train.steps = 1000000, recipe_.checkpoint.every_steps = 2;
  write();
  const CommandResult r =
      test::run_command("OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_ + "& until [[ $(wc -l <" +
                        (run() / "metrics.jsonl").string() + ") -ge 5 ]]; do sleep 0.02; done 2>/dev/null; kill -9 $!");
  auto s = status();
  EXPECT_EQ(s.at("state"), "failed") << r.output;
  EXPECT_NE(s.at("reason").get<std::string>().find("ended without a word"), std::string::npos);
  EXPECT_GE(s.at("saved_step"), 4);
  // Of a version that wrote none.
  fs::remove(run() / "status.json");
  s = status();
  EXPECT_EQ(s.at("state"), "stopped");
  EXPECT_EQ(s.at("steps"), 1000000);
  EXPECT_EQ(s.at("step"), s.at("saved_step"));
}

TEST_F(StatusOfRuns, AFailureIsNamed) {
  expect(train("--run.stop_after_step=2"), 0, {});
  // Its checkpoints cannot be read any more, which is found when the run is there already.
  const CommandResult r = test::run_command("ulimit -f 8; OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_);
  EXPECT_EQ(r.exit_code, 1) << r.output;
  const auto s = status();
  EXPECT_EQ(s.at("state"), "failed") << r.output;
  EXPECT_NE(s.at("reason").get<std::string>().find("File too large"), std::string::npos) << s;
}

TEST_F(StatusOfRuns, AStartWaitsForTheDirectory) {
  recipe_.train.steps = 1000000;
  write();
  const std::string go = "OMP_NUM_THREADS=1 " EMOX_BINARY " train " + path_;
  const std::string begun =
      "until [[ $(wc -l <" + (run() / "metrics.jsonl").string() + ") -ge 3 ]]; do sleep 0.02; done 2>/dev/null; ";
  const CommandResult r =
      test::run_command(go + "& first=$!; " + begun + go + " --run.wait_s=0.5; echo too short $?; " + go +
                        " --run.wait_s=60 --run.stop_after_step=1 & second=$!; " +
                        "sleep 0.7; kill -USR1 $first; wait $second; echo code $?; " + go + "& first=$!; sleep 1; " +
                        go + " --run.wait_s=60 & second=$!; sleep 1; kill -USR1 $second; wait $second; " +
                        "echo asked to end $?; kill -9 $first");
  expect(r, 0,
         {"is in use", "Waiting for it, 60 s at most (run.wait_s)", "too short 75",
          "Waited 1 s for it (run.wait_s = 0.5)", "code 0", "asked to end 75"});
}

TEST_F(StatusOfRuns, AJobScriptWithoutSrunIsWarned) {
  const Variable job("SLURM_JOB_ID", "7"), tasks("SLURM_NTASKS", "4");
  expect(train("--run.stop_after_step=1"), 0, {"this Slurm job has 4 tasks", "srun --mpi=pmix"});
  const Variable step("SLURM_STEP_NUM_TASKS", "1");
  const CommandResult one = train("--run.stop_after_step=2");
  EXPECT_EQ(one.output.find("4 tasks"), std::string::npos) << one.output;
}

TEST_F(StatusOfRuns, ThreadsAreThoseOfTheTask) {
  const auto threads = [&](const std::string& environment) {
    const CommandResult r =
        test::run_command("unset OMP_NUM_THREADS; " + environment + " " EMOX_BINARY " train " + path_ +
                          " --run.stop_after_step=1 --run.dir=" + (directory_.path() / ("t" + environment)).string());
    const auto at = r.output.find(" thread(s)");
    return at == std::string::npos
               ? r.output
               : r.output.substr(r.output.rfind(' ', at - 1) + 1, at - r.output.rfind(' ', at - 1) - 1);
  };
  EXPECT_EQ(threads("SLURM_CPUS_PER_TASK=1"), "1");
  EXPECT_EQ(threads("OMP_NUM_THREADS=1"), "1");
  EXPECT_EQ(threads("SLURM_CPUS_PER_TASK=100000"), threads(""));  // never more than it may use
}

}  // namespace
}  // namespace emox
