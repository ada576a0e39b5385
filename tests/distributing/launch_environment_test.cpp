#include "graft/ranks.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::test;

namespace {

using Variables = std::vector<std::pair<const char*, const char*>>;

/// The environment of a launcher, and no other's.
void set_only(const Variables& variables) {
  for (const char* name :
       {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "TORCHELASTIC_USE_AGENT_STORE"})
    ::unsetenv(name);
  for (const auto& [name, value] : variables) ::setenv(name, value, 1);
}

constexpr const char* kHint =
    "; start the processes with torchrun, or set the variables for each of them; a process that "
    "works alone needs none, or RANK=0 and WORLD_SIZE=1";

}  // namespace

TEST_CASE("a process that works alone has no ranks") {
  for (const Variables& alone :
       {Variables{},
        {{"RANK", "0"}, {"WORLD_SIZE", "1"}},
        {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}},
        {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}},
        // the host and port alone, the shell of a Slurm allocation, one process beside others
        {{"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "29500"}},
        {{"SLURM_NTASKS", "8"}},
        {{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"SLURM_PROCID", "3"}, {"SLURM_NTASKS", "8"}}}) {
    set_only(alone);
    CHECK(join_ranks() == nullptr);
  }
}

TEST_CASE("variables that are missing or make no sense are refused by name") {
  struct Case {
    Variables variables;
    std::string message;
  };
  const std::string wrong = ": the environment variable has a wrong value: expected ";
  const std::string missing = ": the environment variable is not set, though ";
  const std::string whole = "the number of processes, 1 or more, found ";
  const std::string ranks = "the rank of this process, from 0 to 1 as WORLD_SIZE is 2, found ";
  const std::string port = "a port, from 1 to 65535, found ";
  const auto two = [](const char* rank, const char* size) {
    return Variables{{"RANK", rank}, {"WORLD_SIZE", size}};
  };
  const auto at_port = [](const char* value) {
    return Variables{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "here"},
                     {"MASTER_PORT", value}};
  };
  for (const Case& each : std::vector<Case>{
           {{{"RANK", "0"}},
            "WORLD_SIZE" + missing + "RANK is set: expected the number of processes"},
           {{{"WORLD_SIZE", "2"}},
            "RANK" + missing + "WORLD_SIZE is set: expected the rank of this process"},
           {{{"OMPI_COMM_WORLD_RANK", "0"}},
            "OMPI_COMM_WORLD_SIZE" + missing +
                "OMPI_COMM_WORLD_RANK is set: expected the number of processes"},
           {{{"OMPI_COMM_WORLD_SIZE", "2"}},
            "OMPI_COMM_WORLD_RANK" + missing +
                "OMPI_COMM_WORLD_SIZE is set: expected the rank of this process"},
           {{{"SLURM_PROCID", "0"}},
            "SLURM_NTASKS" + missing + "SLURM_PROCID is set: expected the number of processes"},
           {two("", "2"),
            "RANK: the environment variable is empty, though WORLD_SIZE is set: expected the rank "
            "of this process"},
           {two("two", "2"), "RANK" + wrong + ranks + "'two'"},
           {two("1x", "2"), "RANK" + wrong + ranks + "'1x'"},
           {two("1.0", "2"), "RANK" + wrong + ranks + "'1.0'"},
           {two(" 1", "2"), "RANK" + wrong + ranks + "' 1'"},
           {two("2", "2"), "RANK" + wrong + ranks + "'2'"},
           {two("-1", "2"), "RANK" + wrong + ranks + "'-1'"},
           {two("99999999999", "2"), "RANK" + wrong + ranks + "'99999999999'"},
           {two("0", "0"), "WORLD_SIZE" + wrong + whole + "'0'"},
           {two("0", "-2"), "WORLD_SIZE" + wrong + whole + "'-2'"},
           {two("0", "many"), "WORLD_SIZE" + wrong + whole + "'many'"},
           {two("0", "2\n"), "WORLD_SIZE" + wrong + whole + "'2\\x0a'"},
           {two("0", "2"),
            "MASTER_ADDR" + missing + "WORLD_SIZE is 2: expected the host of rank 0"},
           {{{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "2"}},
            "MASTER_ADDR" + missing + "OMPI_COMM_WORLD_SIZE is 2: expected the host of rank 0"},
           {{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"MASTER_ADDR", "here"}},
            "MASTER_PORT" + missing +
                "SLURM_NTASKS is 2: expected a port that is free on the host of rank 0"},
           {at_port("0"), "MASTER_PORT" + wrong + port + "'0'"},
           {at_port("65536"), "MASTER_PORT" + wrong + port + "'65536'"},
           {at_port("http"), "MASTER_PORT" + wrong + port + "'http'"},
       }) {
    set_only(each.variables);
    const Error error = thrown_by([] { join_ranks(); });
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(error.what() == each.message + kHint);
  }
}
