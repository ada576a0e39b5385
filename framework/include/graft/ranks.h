#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "graft/error.h"
#include "graft/export.h"

namespace at {
class Tensor;
}

namespace graft {

/// What a rank throws because of another one, which failed and said why, or was lost; its kind is
/// resource. The error to print is that of the other one.
class GRAFT_API RankLost : public Error {
 public:
  RankLost(std::string what, bool told);
  /// Whether the other one said why, so that its user knows.
  bool told() const { return told_; }
  RankLost(const RankLost&) = default;
  RankLost& operator=(const RankLost&) = default;
  ~RankLost() override;

 private:
  bool told_;
};

/// The processes that do one job together, started by torchrun, mpirun or Slurm. Every rank makes
/// the same calls in the same order, one at a time; what a call gives is the same on all ranks,
/// byte for byte. Nothing is added up here: a caller that wants a sum gathers the summands and adds
/// them in an order of its own, so that it does not depend on which rank computed what.
///
/// A call waits for the slowest rank, an hour at most. When a rank fails or its process ends, the
/// present call of each other rank, or its next one, throws RankLost, and so does every later one.
/// Calls that differ between ranks throw Error(usage). All machines must be of one byte order.
class GRAFT_API Ranks {
 public:
  virtual ~Ranks();

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// What each rank gave, by rank; any sizes, empty ones as well.
  virtual std::vector<std::string> gather(std::string_view bytes) = 0;

  /// Completes `rows` (contiguous, on the CPU, any dtype) on all ranks, in place: rank r has filled
  /// the rows (indices of dimension 0) from bounds[r] to before bounds[r + 1], and gets the others.
  /// Nothing is copied besides, so that large summands are best exchanged as rows of one tensor.
  virtual void gather_rows(const at::Tensor& rows, const std::vector<std::int64_t>& bounds) = 0;

  /// Tells the other ranks why this one cannot go on, as far as they can be told without waiting,
  /// and leaves them. Does nothing when another rank has failed or was lost before. False when
  /// another one has told before, or a lower rank fails as well, perhaps for the same reason: then
  /// that one has the error to print.
  virtual bool fail(std::string_view why) noexcept = 0;
};

/// The ranks that the environment names, connected; null when this process works alone:
///
///   torchrun, or set by hand    RANK, WORLD_SIZE
///   mpirun of Open MPI          OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE
///   srun                        SLURM_PROCID, SLURM_NTASKS
///
/// The first pair that is there counts. With each go MASTER_ADDR and MASTER_PORT, the host of rank
/// 0 and a port that is free there; GLOO_SOCKET_IFNAME names the network interface to use, by
/// default the one that leads to MASTER_ADDR. Connections are neither encrypted nor authenticated:
/// whoever reaches the ports can disturb the job.
///
/// Throws Error(usage) for variables that are missing or make no sense, Error(resource) when the
/// ranks have not all met after `patience`.
GRAFT_API std::unique_ptr<Ranks> join_ranks(
    std::chrono::milliseconds patience = std::chrono::minutes(5));

}  // namespace graft
