-- Which features contribute differently in two classes of patients, per prediction.
--
-- One row a feature, the largest difference of mean contributions per prediction first, with Welch's 95 %
-- interval over patients. The interval is missing where patients have predictions in both classes (the two
-- means are then not independent) or where fewer than 30 effective patients stand behind either mean.
-- Arguments: class_a minus class_b (labels); level, split, stratum, run, top, min_patients (in each class).
-- Example: whenwhy query STORE class_comparison class_a=true class_b=false top=5
create or replace temp macro class_comparison(
    class_a := 'true', class_b := 'false', level := 'code', split := 'held_out', stratum := 'all', run := null,
    top := 20, min_patients := 11
) as table
with side as (
    select e.*, e.variance_per_prediction as variance from estimates e
    where e.level = level and e.split = split and e.stratum = stratum and e.time_bin is null
        and e.run_id = coalesce(run::varchar, (select min(run_id) from runs))
        and e.n_patients >= min_patients::integer
),
shared as (
    select sum(case when x.class = 'all' then -x.n_patients else x.n_patients end) > 0 as patients_are_shared
    from exposure x
    where x.split = split and x.stratum = stratum and x.time_bin is null and x.time_axis = 'before_prediction'
        and x.run_id = coalesce(run::varchar, (select min(run_id) from runs))
),
pairs as (
    select a.code, a.feature_value_id, a.description,
        a.n_patients as n_patients_a, b.n_patients as n_patients_b,
        a.mean_per_prediction as mean_a, b.mean_per_prediction as mean_b,
        a.mean_per_prediction - b.mean_per_prediction as difference,
        case when s.patients_are_shared or least(a.effective_patients, b.effective_patients) < 30 then null
            else a.variance + b.variance end as variance,
        pow(a.variance + b.variance, 2) / (pow(a.variance, 2) / (a.effective_patients - 1)
            + pow(b.variance, 2) / (b.effective_patients - 1)) as degrees
    from side a
    join side b on a.code = b.code and a.feature_value_id is not distinct from b.feature_value_id
    cross join shared s
    where a.class = class_a and b.class = class_b
)
select
    row_number() over (order by abs(p.difference) desc, p.code, p.feature_value_id)::integer as rank,
    p.code, p.feature_value_id, p.description, p.n_patients_a, p.n_patients_b, p.mean_a, p.mean_b, p.difference,
    p.difference - student_t_975(p.degrees) * sqrt(p.variance) as difference_low,
    p.difference + student_t_975(p.degrees) * sqrt(p.variance) as difference_high
from pairs p
qualify rank <= top::integer
order by rank;
