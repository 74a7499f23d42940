"""Several devices and several processes, and the cost of computations on them."""

from imr.parallel import cost as cost
from imr.parallel.hosts import Preempted as Preempted
from imr.parallel.hosts import agreed as agreed
from imr.parallel.hosts import initialize as initialize
from imr.parallel.hosts import initialize_from_environment as initialize_from_environment
from imr.parallel.hosts import is_first as is_first
from imr.parallel.hosts import preempted as preempted
from imr.parallel.hosts import stop_on_sigterm as stop_on_sigterm
from imr.parallel.mesh import from_local_rows as from_local_rows
from imr.parallel.mesh import local as local
from imr.parallel.mesh import make_mesh as make_mesh
from imr.parallel.mesh import mesh_of_all as mesh_of_all
from imr.parallel.mesh import replicate as replicate
