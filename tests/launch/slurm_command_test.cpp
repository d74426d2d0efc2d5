// `emox slurm`: what stands in a job script, and what is refused before there is one.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "launch/job_script/job_script.h"
#include "runtime/core/error.h"
#include "tests/launch/tiny_program.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using test::CommandResult;

TEST(JobScript, TimesAreThoseOfSbatch) {
  const std::pair<const char*, std::int64_t> times[] = {{"90", 5400},    {"1:30", 90},        {"1:30:00", 5400},
                                                        {"2-0", 172800}, {"1-12:30", 131400}, {"1-0:0:1", 86401}};
  for (const auto& [text, seconds] : times) EXPECT_EQ(seconds_of_time(text), seconds) << text;
  for (const char* wrong : {"", "0", "1h", "-5", "1:2:3:4", "1:", "infinite", "1-", "99999999999"})
    EXPECT_THROW(seconds_of_time(wrong), UsageError) << wrong;
}

TEST(JobScript, WordsReachTheShellAsTheyAre) {
  for (const std::string word : {"plain", "", "two words", "it's", "$HOME", "a\"b", "*;&|", "--run.dir=/x y"}) {
    const test::TemporaryDirectory directory;
    const std::string script = (directory.path() / "script").string();
    std::ofstream(script) << "printf %s " << shell_quoted(word);
    EXPECT_EQ(test::run_command("sh " + script).output, word);
  }
}

TEST(JobScript, PointsAreWordsOfAShell) {
  const test::TemporaryDirectory directory;
  const std::string file = (directory.path() / "points").string();
  const auto read = [&](const std::string& text) {
    std::ofstream(file) << text;
    return read_points(file);
  };
  using Words = std::vector<std::vector<std::string>>;
  EXPECT_EQ(read("a.ini --x.y=1 # first\n\n# none\n  b.ini '--run.name=two words' \"\"\n"),
            (Words{{"a.ini", "--x.y=1"}, {"b.ini", "--run.name=two words", ""}}));
  for (const char* wrong : {"", "\n# only this\n", "a.ini 'open\n"}) EXPECT_THROW(read(wrong), UsageError) << wrong;
  EXPECT_THROW(read_points(file + ".gone"), UsageError);
}

class SlurmCommand : public test::TinyProgram {
 protected:
  SlurmCommand() {
    write();
    fs::copy_file(EMOX_SOURCE_DIR "/slurm/site.env", site_);
  }
  CommandResult slurm(const std::string& more, const std::string& environment = "") const {
    return test::run_command(environment + " " EMOX_BINARY " slurm --site=" + site_ + " " + more);
  }
  CommandResult usual(const std::string& more, const std::string& environment = "") const {
    return slurm(path_ + " --nodes 2 --ranks-per-node=2 --time=1:00:00 " + more, environment);
  }
  void site(const std::string& from, const std::string& to) const {
    std::string all = text(site_);
    const auto at = all.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::ofstream(site_) << all.replace(at, from.size(), to);
  }
  /// A folder to put before PATH, with these programs.
  std::string programs(const std::vector<std::string>& names) const {
    const fs::path folder = directory_.path() / "bin";
    fs::create_directories(folder);
    for (const std::string& name : names) {
      std::ofstream(folder / name) << "#!/bin/bash\ncat\n";
      chmod((folder / name).c_str(), 0755);
    }
    return "PATH=" + folder.string() + ":/usr/bin:/bin";
  }

  const std::string site_ = (directory_.path() / "site.env").string();
};

TEST_F(SlurmCommand, SaysWhatSlurmHasToKnow) {
  site("EMOX_SBATCH=\"\"", "EMOX_SBATCH=\"--account=x --gres=y:{ranks}\"");
  site("EMOX_GPUS=\"\"", "EMOX_GPUS='--gpus-per-node={ranks}'");
  const CommandResult r = usual("--train.threads=3");
  expect(r, 0,
         {"#!/bin/bash\n", "#SBATCH --nodes=2\n", "#SBATCH --ntasks-per-node=2\n", "#SBATCH --time=1:00:00\n",
          "#SBATCH --signal=B:USR1@300\n", "#SBATCH --open-mode=append\n", "#SBATCH --requeue\n",
          "#SBATCH --account=x\n", "#SBATCH --gres=y:2\n", "#SBATCH --gpus-per-node=2\n", "#SBATCH --cpus-per-task=3\n",
          "no run has measured a save yet", "set -- " + path_, "--train.threads=3 \"--run.wait_s=$EMOX_WAIT_S\"",
          "--kill-on-bad-exit=1"});
  EXPECT_EQ(r.output.find("@SITE@"), std::string::npos);
  EXPECT_EQ(usual("--run.device=cpu").output.find("gpus-per-node=2"), std::string::npos);
  const std::string file = (directory_.path() / "job.sh").string();
  EXPECT_EQ(usual("--train.threads=3 --output=" + file).output, "");
  EXPECT_EQ(text(file), r.output);
  expect(test::run_command("bash -n " + file), 0, {});
  expect(test::run_command("! command -v shellcheck >/dev/null || shellcheck --severity=warning " + file), 0, {});
}

TEST_F(SlurmCommand, TheLeadIsWhatTheRunHasMeasured) {
  expect(train("--run.stop_after_step=2"), 0, {});
  expect(usual(""), 0, {"@61\n", "two steps of 0."});
  expect(usual("--lead=1000"), 0, {"#SBATCH --signal=B:USR1@1000\n", "as --lead says"});
  expect(usual("--lead=3600"), 2, {"--time=1:00:00 is 3600 s", "the last 3600 s to save", "smaller --lead"});
  expect(slurm(path_ + " --nodes=1 --time=1"), 2, {"--time=1 is 60 s", "give it more time"});
  expect(slurm(path_ + " --nodes=1 --time=4 --run.dir=elsewhere"), 0, {"USR1@120\n"});
  // A new run: milliseconds of a tiny model on such a machine, and a minute. What was measured counts more.
  expect(slurm(path_ + " --nodes=1 --time=4 --run.dir=elsewhere --hardware=h200"), 0,
         {"USR1@61\n", "as planned for h200"});
  expect(usual("--hardware=h200"), 0, {"@61\n", "measured"});
  expect(usual("--hardware=h300"), 2, {"there is no hardware h300"});
  expect(usual("--hardware=h200 --command=study"), 2, {"--hardware plans the lead time of one training run"});
}

TEST_F(SlurmCommand, AnArrayHasItsArgumentsByElement) {
  const std::string points = (directory_.path() / "points.txt").string();
  std::ofstream(points) << path_ << " '--run.name=a b'\n" << path_ << " --train.stepz=4\n";
  const CommandResult r = slurm("--array=" + points + " --nodes=1 --time=10 --run.seed=3");
  expect(r, 0,
         {"#SBATCH --array=0-1\n", "points-%A_%a.log", "  0) set -- " + path_ + " '--run.name=a b' --run.seed=3",
          "  1) set -- " + path_ + " --train.stepz=4", "element 1 of --array will fail", "train.steps"});
  expect(slurm("--array=" + points + ".gone --nodes=1 --time=10"), 2, {"cannot read --array="});
  expect(usual("--array=" + points), 2, {"there are both"});
}

TEST_F(SlurmCommand, OtherCommandsAreJobsToo) {
  expect(usual("--command=study --seeds=2 --set=standard:train.learning_rate=0.01"), 0,
         {"\"$emox\" study \"$@\" --print-config", "--seeds=2", "--set=standard:train.learning_rate=0.01"});
  expect(slurm("runs/x --command=eval --nodes=1 --time=10 --keep=4"), 0, {"set -- runs/x --keep=4\n", "dir=$1"});
  expect(usual("--command=evil"), 2, {"not one of train, study, eval", "did you mean eval?"});
}

TEST_F(SlurmCommand, BadInputLeavesNothing) {
  const std::string file = (directory_.path() / "job.sh").string(), output = " --output=" + file;
  expect(slurm(path_ + " --time=10" + output), 2, {"--nodes is missing"});
  expect(slurm(path_ + " --nodes=2" + output), 2, {"--time is missing"});
  expect(slurm("--nodes=2 --time=10" + output), 2, {"there is neither"});
  expect(usual("--parallel.expert_parallel=3" + output), 2, {"parallel.expert_parallel = 3"});
  expect(usual("--train.stepz=3" + output), 2, {"train.steps"});
  expect(usual("--nodes=0" + output), 2, {"--nodes"});
  expect(slurm(path_ + ".gone --nodes=2 --time=10" + output), 2, {".gone"});
  site("EMOX_SIGNAL=\"USR1\"", "EMOX_SIGNAL=\"KILL\"");
  expect(usual(output), 2, {site_, "EMOX_SIGNAL = \"KILL\"", "USR1 or USR2"});
  site("EMOX_SIGNAL=\"KILL\"", "EMOX_SIGNAL=$(hostname)");
  expect(usual(output), 2, {site_ + ":", "cannot be read by emox"});
  site("EMOX_SIGNAL=$(hostname)", "EMOX_SIGNALS=USR1");
  expect(usual(output), 2, {"EMOX_SIGNALS is no variable of a site: did you mean EMOX_SIGNAL?"});
  site("EMOX_SIGNALS=USR1", "");
  expect(usual(output), 2, {site_, "EMOX_SIGNAL is missing: it is USR1 or USR2"});
  expect(usual(output + " --site=" + file), 2, {"cannot read", "--site=FILE or EMOX_SITE"});
  EXPECT_FALSE(fs::exists(file));
}

TEST_F(SlurmCommand, AMissingCommandOfTheSiteIsNamed) {
  const std::string all = programs({"sbatch", "srun", "scontrol"});
  expect(usual("", all), 0, {"#SBATCH"});
  expect(usual("--submit", all), 0, {"#SBATCH --nodes=2"});  // this sbatch prints what it gets
  site("srun --mpi=pmix", "psrun --mpi=pmix");
  expect(usual("", all), 2, {site_, "there is no command psrun here", "EMOX_LAUNCH = psrun --mpi=pmix"});
  site("EMOX_MODULES=\"\"", "EMOX_MODULES=\"psslurm\"");
  expect(usual("", all), 0, {"psrun --mpi=pmix"});
  site("psrun --mpi=pmix --kill-on-bad-exit=1", "");
  expect(usual("", all), 2, {"EMOX_LAUNCH = \"\"", "the command that starts the ranks"});
}

}  // namespace
}  // namespace emox
