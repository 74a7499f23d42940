"""Several devices and several processes, and the cost of computations on them."""

from imr.parallel import cost as cost
from imr.parallel import cycles as cycles
from imr.parallel.hosts import agreed as agreed
from imr.parallel.hosts import initialize as initialize
from imr.parallel.hosts import initialize_from_environment as initialize_from_environment
from imr.parallel.hosts import is_first as is_first
from imr.parallel.hosts import largest as largest
from imr.parallel.mesh import from_local_rows as from_local_rows
from imr.parallel.mesh import local as local
from imr.parallel.mesh import make_mesh as make_mesh
from imr.parallel.mesh import mesh_of_all as mesh_of_all
from imr.parallel.mesh import replicate as replicate
from imr.parallel.preemption import Preempted as Preempted
from imr.parallel.preemption import end_on_signals as end_on_signals
from imr.parallel.preemption import preempted as preempted
from imr.parallel.preemption import stop_if_asked as stop_if_asked
from imr.parallel.preemption import stop_on_signals as stop_on_signals
