// The help screens: each fits a terminal of 24 lines by 80 columns.
#include <fmt/format.h>

#include "launch/commands/command.h"

namespace emox {

std::string help_overview() {
  std::string text =
      "emox: mixture-of-experts language models whose experts become modular.\n"
      "usage: emox COMMAND [arguments], emox COMMAND --help\n"
      "\n";
  for (const Command& command : commands()) text += fmt::format("  {:<10} {}\n", command.name, command.summary);
  return text +
         "\n"
         "first: emox corpus && mpirun -n 2 emox train launch/recipes/quickstart.ini\n"
         "       emox eval runs/quickstart\n"
         "Any key of a recipe can be given as --section.key=value. Exit codes: 0 done or\n"
         "cleanly stopped, 1 failed, 2 wrong usage, 75 try again, 128 + N by a signal.\n";
}

std::string help_train() {
  return "usage: emox train RECIPE.ini [--section.key=value]...\n"
         "\n"
         "Starts the run, or resumes it when run.dir holds one. SIGUSR1, SIGUSR2,\n"
         "SIGTERM, SIGINT or SIGHUP to a rank end all after the step, saved; mpirun hands\n"
         "on the first two in time. The same command then resumes the run.\n"
         "common keys:\n"
         "  --run.dir=DIR                    where the run is kept (runs/NAME)\n"
         "  --run.stop_after_step=N          save and stop after step N\n"
         "  --run.warm_start=RUN             begin with another run's weights\n"
         "  --run.device=cuda|cpu            where to compute (auto: a GPU, if any)\n"
         "  --run.change=KEY,KEY             let this resume change these keys\n"
         "  --train.batch_sequences=N        sequences a step, all ranks together\n"
         "  --train.learning_rate=X          peak learning rate\n"
         "  --moe.pool=off                   standard MoE instead of EMO\n"
         "  --data.source=LABEL:WEIGHT:PATH  corpus; repeat for several\n"
         "options:\n"
         "  --print-config   print the resolved recipe and stop\n"
         "  --trace FILE     timeline of all ranks, for chrome://tracing or Perfetto\n"
         "  --record-pools FILE  pools and picks, for emox bench dispatch --replay;\n"
         "                   --force replaces these files where they exist\n"
         "  --profile-steps A:B  steps that nsys watches (--capture-range=cudaProfilerApi)\n"
         "  --help SECTION   keys of run model moe train data parallel checkpoint eval all\n"
         "\n"
         "example: mpirun -n 2 emox train launch/recipes/quickstart.ini\n";
}

std::string help_eval() {
  return "usage: emox eval RUN|CHECKPOINT [--experts=FILE | --keep=K | --modularity]\n"
         "                 [--section.key=value]... [--json]\n"
         "\n"
         "Loss and bits per byte on the held-out documents of every source, and their\n"
         "mean over sources. RUN is a run directory (its newest checkpoint is read),\n"
         "CHECKPOINT one directory below checkpoints/.\n"
         "\n"
         "options:\n"
         "  --experts=FILE  with the experts of a file of emox select, and with all\n"
         "  --keep=K        each domain with the K experts a layer (shared ones count)\n"
         "                  that its own training documents choose, and with all\n"
         "  --layer-budgets=K,K,... --method=M --examples=N --seed=N\n"
         "                  how they are chosen: see emox select --help\n"
         "  --modularity    instead of the loss: how few experts a document uses, what a\n"
         "                  token's experts tell about topic and token, and by chance\n"
         "  --json          one JSON object: step, experts_kept, domains, mean, data (as\n"
         "                  trained or not); with fewer experts also full: all of them\n"
         "\n"
         "example: emox eval runs/quickstart --json\n";
}

std::string help_subset() {
  return "usage: emox subset RUN|CHECKPOINT --experts=FILE.json --output=DIR [--json]\n"
         "\n"
         "Cuts a smaller model out: the experts of a file of emox select, with router\n"
         "rows and moments, and everything that is no expert. DIR becomes a run with\n"
         "one checkpoint of the same step and a recipe of fewer experts; evaluate it,\n"
         "resume it on any ranks, or begin another run with it (run.warm_start).\n"
         "\n"
         "  --experts=FILE.json  all layers must keep equally many\n"
         "  --output=DIR         a directory that does not exist yet\n"
         "  --json               one JSON object: output, experts_kept, tensors, bytes\n"
         "\n"
         "example: emox subset runs/tiny --experts=perl.json --output=runs/perl\n";
}

std::string help_select() {
  return "usage: emox select RUN|CHECKPOINT --domain=L|--documents=FILE|--prompt=TEXT\n"
         "                   --keep=K --output=FILE.json [options]\n"
         "\n"
         "Chooses the experts of each layer that some text needs, and writes their\n"
         "numbers and scores. Held-out documents are read only where FILE holds some:\n"
         "the log and the output's provenance (held_out_of) say that.\n"
         "\n"
         "  --domain=L        training documents of the run's data source L\n"
         "  --documents=FILE  .npy: token file; .jsonl: a text a line; else one text\n"
         "  --prompt=TEXT     this text\n"
         "  --keep=K          experts that a layer keeps, shared ones included\n"
         "  --layer-budgets=K,K,...  for each layer its own number\n"
         "  --method=M        layerwise (default): probabilities, the layers before\n"
         "                    pruned; global: probabilities; easy-ep: outputs; random\n"
         "  --examples=N      documents, at most (32 of a domain, else all)\n"
         "  --seed=N          of random, and of which documents (0)\n"
         "  --force           replace FILE.json\n"
         "  --json            one JSON object: output, experts_kept, provenance\n"
         "\n"
         "example: emox select runs/tiny --domain=perl --keep=8 --output=perl.json\n";
}

std::string help_corpus() {
  return "usage: emox corpus [options]\n"
         "       emox corpus --text LABEL=PATH... --output DIR\n"
         "\n"
         "Builds the corpus that launch/recipes/quickstart.ini and tiny.ini read: ten\n"
         "domains of real text from small Debian 12 packages (54 MB, fetched by apt-get,\n"
         "not installed); or one of your own text: text files, .jsonl with a field `text`,\n"
         "both also .gz, directories of them. A domain has train.npy, tune.npy to choose\n"
         "settings by and heldout.npy to report on; neither repeats training text.\n"
         "\n"
         "options:\n"
         "  --output DIR           where it is written (corpus/quickstart)\n"
         "  --text LABEL=PATH ...  your own text; several paths of a label are one domain\n"
         "  --bytes-per-domain N   training text of one domain, at most (3000000)\n"
         "  --packages DIR         directory with the .deb files: no network is needed\n"
         "  --keep-packages        do not remove downloaded packages afterwards\n"
         "  --force                build again\n"
         "  --json                 one JSON object\n"
         "\n"
         "example: emox corpus && mpirun -n 2 emox train launch/recipes/quickstart.ini\n";
}

std::string help_bench() {
  return "usage: emox bench step|ops|checkpoint [RECIPE.ini] [--preset=P] ...\n"
         "       emox bench dispatch|scale|rates ...\n"
         "\n"
         "  step       one training step, against the time its matrix products need\n"
         "  ops        the same step op by op, against the limits of the machine\n"
         "  checkpoint saving and loading the state, against plain files in the same place\n"
         "  dispatch   ranks and nodes a token visits, planned for ranks that need not\n"
         "             exist, beside the formulas; or for recorded pools. With a recipe:\n"
         "             its dispatch run by the ranks that were started, against the links\n"
         "  scale RECIPE.ini  host work of jobs that do not run, to 4,096 ranks; --nodes N\n"
         "  rates      this machine, as --output FILE.json for emox plan; --widths W,...\n"
         "\n"
         "options:\n"
         "  --section.key=value    any key of a recipe (not dispatch); see --help SECTION\n"
         "  --preset=P             small, mid; emo-1b14b-block: two layers, for a GPU\n"
         "  --steps N              step, ops: timed steps (10)\n"
         "  --dir DIR, --repeats N checkpoint: where (bench-checkpoint), how often (5)\n"
         "  --replay FILE          dispatch: what emox train --record-pools FILE wrote,\n"
         "    --placement block|random|affinity|FILE   --placement-seed S, --load-limit X\n"
         "    --homes affinity     sequences where their experts are, --sequences S a rank\n"
         "  --expert-parallel N --data-parallel M --ranks-per-node G  planned mesh (8 1 8)\n"
         "  --width D, --json      elements of a row, for bytes (2048); one JSON object\n"
         "\n"
         "example: emox bench step --preset=small --json   (OMP_NUM_THREADS: threads)\n";
}

std::string help_checkpoint() {
  return "usage: emox checkpoint info|verify|diff|export|prune ... [--json]\n"
         "\n"
         "  info RUN|CHECKPOINT     what is in it, a line for each kind of tensor\n"
         "    --all                 every tensor\n"
         "    --no-norms            from the manifest alone: reads no tensors\n"
         "  verify RUN|CHECKPOINT   every byte (all checkpoints of a RUN); exit 1: damaged\n"
         "  diff A B                tensors that differ, and by how much, however they are\n"
         "    --all                 sharded; exit 0: all tensors equal, 1: not\n"
         "  export RUN|CHECKPOINT --output=FILE.h5    whole tensors in one file\n"
         "    --moments             optimizer moments as well\n"
         "    --experts=SPEC        routed experts, 0-3,7 of every layer, or by layer,\n"
         "                          \"0:0-3;1:7,9\"; files without them are not read\n"
         "    --only=PREFIX         tensors whose names begin so\n"
         "    --force               replace FILE.h5\n"
         "  prune RUN --keep-last=N    never removes the newest intact checkpoint\n"
         "    --keep-every-steps=M  keep those of every M steps too\n"
         "    --dry-run             only say what would go\n"
         "\n"
         "RUN means its newest intact checkpoint. Ranks share the reading:\n"
         "\n"
         "example: mpirun -n 2 emox checkpoint verify runs/quickstart\n";
}

std::string help_study() {
  return "usage: emox study RECIPE.ini [--seeds N] [--cells LIST] [--set ...] [--tune ...]\n"
         "\n"
         "Trains the recipe (EMO) and its baselines one after another on all ranks, with\n"
         "the same data order and initial values, into run.dir/cells; measures what each\n"
         "loses with 50, 25 and 12.5 % of its experts, and writes run.dir/retention.csv\n"
         "and .svg, loss.svg, report.html. The same command goes on where it was stopped.\n"
         "\n"
         "  --seeds N     seeds of every cell, from run.seed on (3)\n"
         "  --cells LIST  emo,standard (default), all, or any of: dense (as many active\n"
         "                parameters) fewer-experts (trained with the subsets' number)\n"
         "                all-pooled quarter-free free-tokens fixed-pool local-balance\n"
         "                label-pools no-shared: see launch/analysis/study/README.md\n"
         "  --set MODEL:KEY=VALUE   a value for one model (several: A,B:KEY=VALUE); again\n"
         "  --tune KEY=V,V,...      instead: each model with each value, on documents that\n"
         "                no report reads, into run.dir/tuning, tune.csv; again: all pairs\n"
         "  --chance-draws N        random subsets of each domain (8)\n"
         "  --repeat-rounding       the first seed again, differing in rounding only\n"
         "  --help SECTION          every key of a section\n"
         "\n"
         "example: mpirun -n 2 emox study launch/recipes/study-mini.ini --seeds 4\n";
}

std::string help_placement() {
  return "usage: emox placement RUN|RECORDING --expert-parallel R [--output FILE.json]\n"
         "\n"
         "Places experts by which documents use them: those of all layers that the same\n"
         "documents pick come onto one rank (nodes first), ranks have equally many and\n"
         "about equally much to do. Every second document of the recording chooses; on the\n"
         "others rows, ranks and nodes a token and loads are measured, beside block and\n"
         "random placement. RECORDING: of emox train --record-pools.\n"
         "\n"
         "options:\n"
         "  --expert-parallel R   ranks that share the experts\n"
         "  --ranks-per-node G    of them on one node (8)\n"
         "  --output FILE.json    the placement, for parallel.placement = file\n"
         "  --from-step N         leave out what was recorded before\n"
         "  --seed N              of the first guesses (0)\n"
         "  --load-limit X        picks of the fullest rank over the mean, at most (1.05)\n"
         "  --force               replace FILE.json\n"
         "  --json                one JSON object\n"
         "\n"
         "example: emox placement pools.bin --expert-parallel 4 --output placement.json\n";
}

std::string help_report() {
  return "usage: emox report RUN... [--against RUN]... --output FILE.html [--csv FILE.csv]\n"
         "\n"
         "Runs beside each other: loss and throughput over tokens, phases, strong and weak\n"
         "scaling (runs that differ in their ranks only), balance, traffic, starts and\n"
         "changes, and the scaling law where 6 or more finished runs allow one. RUN is a\n"
         "run's directory, or one that holds runs. Needs no ranks.\n"
         "\n"
         "options:\n"
         "  --output FILE.html  one page that needs nothing else, for screen and paper\n"
         "  --csv FILE.csv      a line a run, for other programs\n"
         "  --against RUN       another set to compare with; again for more\n"
         "  --title TEXT        of the page\n"
         "  --force             replace the files\n"
         "  --json              an array of objects, one a run, instead of a table\n"
         "\n"
         "example: emox report runs --output runs.html\n";
}

std::string help_plan() {
  return "usage: emox plan RECIPE.ini [--nodes N | --ranks N] [--hardware H] [--search]\n"
         "\n"
         "Memory of each rank, from the code that allocates it, pieces of a checkpoint and\n"
         "what a rank receives in a step, for ranks that need not exist. With hardware\n"
         "also: whether it fits, seconds of a step and of its parts, tokens/s, hours.\n"
         "\n"
         "options:\n"
         "  --nodes N            nodes of the job\n"
         "  --ranks-per-node G   ranks on each (the hardware's, else 8)\n"
         "  --ranks N            instead of --nodes (parallel.expert_parallel)\n"
         "  --hardware H         h100-sxm, h200, ...: files of datasheets in share/emox;\n"
         "                       or FILE.json of `emox bench rates` on the machine\n"
         "  --search             all meshes of these ranks, the fastest first\n"
         "  --document-tokens N  mean length of a document (1024)\n"
         "  --imbalance X        expert rows of the fullest rank / mean (1.1)\n"
         "  --section.key=value  any key, e.g. --run.device=cuda without hardware\n"
         "  --json               one JSON object, in bytes and seconds\n"
         "\n"
         "example: emox plan launch/recipes/emo-1b14b.ini --nodes 2 --hardware h100-sxm \\\n"
         "           --parallel.expert_parallel=8\n";
}

std::string help_slurm() {
  return "usage: emox slurm RECIPE.ini --nodes N --time T [--section.key=value]...\n"
         "       emox slurm --array FILE --nodes N --time T\n"
         "\n"
         "Prints a job script that saves before its time is over and goes on by itself,\n"
         "waits for a run directory, tries again after a failure while there is progress,\n"
         "and never after a mistake. RUN/STOP, a file, ends such a run for good.\n"
         "\n"
         "  --ranks-per-node G   ranks on each node (1)\n"
         "  --time T             as for sbatch: minutes, H:MM:SS, D-HH\n"
         "  --array FILE         an array: arguments of the command, an element a line\n"
         "  --command C          train (default), study, or eval with RUN for RECIPE.ini;\n"
         "                       their options go to them\n"
         "  --site FILE          what this site decides; EMOX_SITE, else the file that\n"
         "                       came with emox: share/emox/slurm/site.env\n"
         "  --lead S             seconds before the end at which it begins to stop (the\n"
         "                       run's measured step and save, twice, and a minute; of a\n"
         "                       new run as planned for --hardware H, else 300)\n"
         "  --output FILE        write it there; --submit: give it to sbatch\n"
         "  --job-name NAME      (the run's name)\n"
         "\n"
         "example: emox slurm launch/recipes/tiny.ini --nodes 2 --time 1:00:00 --submit\n";
}

std::string help_status() {
  return "usage: emox status RUN... [--json]\n"
         "\n"
         "What runs are doing, or how they ended: running, finished (the last step and its\n"
         "evaluation are done), stopped (saved, by what) or failed (why; also when nobody\n"
         "is there who still writes status.json). A study means all its cells.\n"
         "\n"
         "options:\n"
         "  --json   one JSON object: runs, each with state, step, steps, saved_step,\n"
         "           reason, signal, for_good, job, restarts, host, pid, started, updated,\n"
         "           step_s, save_s\n"
         "\n"
         "example: emox status runs/*\n";
}

std::string help_data() {
  return "usage: emox data verify RUN|CHECKPOINT|RECIPE.ini|FILE... [--record] [--json]\n"
         "\n"
         "Reads token files whole: every id is in the vocabulary, the document index\n"
         "covers the file. Those of a run (training and held-out) are compared with what\n"
         "its checkpoint says that it was trained on, those of a recipe or by name with\n"
         "what was recorded beside them. Exit 0: all sound and the same, 1: not.\n"
         "\n"
         "FILE is a token file, a directory of them or a quoted pattern.\n"
         "\n"
         "options:\n"
         "  --record         write FILE.identity.json beside each sound file: size, type,\n"
         "                   tokens, documents, checksum of all tokens\n"
         "  --vocab-size=N   FILE: ids must be below N (a recipe and a run know it)\n"
         "  --token-type=T   FILE without a header: uint16 or uint32\n"
         "  --json           one JSON object: files, bad, bytes, seconds\n"
         "\n"
         "A run checks large files by samples when it starts and is resumed; this reads\n"
         "all of them.\n"
         "\n"
         "example: emox data verify runs/quickstart\n";
}

std::string help_doctor() {
  return "usage: emox doctor [RECIPE.ini [--section.key=value]...] [--json]\n"
         "\n"
         "What this build and this machine can do: processor and the instructions emox\n"
         "was compiled for, threads, speed of matrix products, ranks and how fast they\n"
         "sum, HDF5, and what a SIGTERM does here. GPUs: whether CUDA is built in, driver,\n"
         "devices and their free memory, why one cannot be used, and where and in which\n"
         "type a run computes here (run.device). Warns when ranks and threads do not\n"
         "fit the cores. With a recipe also the memory that it takes on these ranks, the\n"
         "copy for saves in the background included, against what is there.\n"
         "\n"
         "options:\n"
         "  --json   one JSON object\n"
         "\n"
         "example: mpirun -n 2 emox doctor launch/recipes/quickstart.ini\n";
}

}  // namespace emox
